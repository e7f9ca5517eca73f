"""Claims in a storage path: one live process has each, whatever dies, and wherever it runs."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from sweeps.execution.claims import ClaimedTasks
from sweeps.execution.errors import StoppedSweep
from tests.commands import ROOT, wait_for
from tests.tiny import tiny_base
from trainables.specs.tasks import Task
from trainables.storage import leases as module
from trainables.storage.leases import LEASE_FOLDER, Leases, LostLease
from trainables.storage.store import Store

HOLD = """
import sys, time
from trainables.storage.leases import Leases
from trainables.storage.store import Store
leases = Leases(Store(sys.argv[1]), "the other")
assert leases.claim("x") is None
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture()
def store(tmp_path) -> Store:
    store = Store(tmp_path / "store")
    store.check_writable()
    return store


@pytest.fixture()
def other(store):
    """Another process that has claimed `x`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, store.root], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_another_live_process_is_named_and_a_dead_one_counts_as_nothing(store, other):
    ours = Leases(store, "ours")
    holder = ours.claim("x")
    assert holder.pid == other.pid and str(holder).startswith(f"the other on {holder.host}, process {other.pid}, since 20")
    assert ours.claim("y") is None and ours.claim("y") is None
    other.send_signal(signal.SIGKILL)
    wait_for(lambda: psutil.Process(other.pid).status() == psutil.STATUS_ZOMBIE, "its end")  # nobody has asked for it
    assert ours.claim("x") is None, "the process is gone, and nobody waits for its lease to run out"
    names = {file.name for file in Path(store.root, LEASE_FOLDER).iterdir()}
    assert names == {f"owner.{ours.owner.id}", f"claim.x.{ours.owner.id}", f"claim.y.{ours.owner.id}"}
    ours.release("x")
    assert Leases(store, "third").claim("x") is None
    ours.close()
    assert not any(ours.owner.id in file.name for file in Path(store.root, LEASE_FOLDER).iterdir())


def test_a_process_id_that_another_process_has_now_is_not_the_owner(store):
    gone = Leases(store, "gone")
    assert gone.claim("x") is None
    gone.owner = replace(gone.owner, process_started_s=gone.owner.process_started_s - 100)
    gone._write_owner()
    assert Leases(store, "ours").claim("x") is None


def elsewhere(leases: Leases, *, renewed_ago_s: float) -> Path:
    """Make an owner look like a process of another machine that renewed its lease so long ago."""
    leases._closed.set()
    leases.owner = replace(leases.owner, machine="another", host="far-away")
    leases._write_owner()
    file = Path(leases.folder, f"owner.{leases.owner.id}")
    then = time.time() - renewed_ago_s
    os.utime(file, (then, then))
    return file


def test_another_machine_loses_its_claim_when_it_renews_nothing(store, monkeypatch):
    theirs, ours = Leases(store, "theirs"), Leases(store, "ours")
    assert theirs.claim("x") is None
    file = elsewhere(theirs, renewed_ago_s=2 * module.EXPIRE_S)
    assert ours.claim("x").host == "far-away", "it may be that a clock has jumped: first it is watched"
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + module.WATCH_S + 1)
    assert ours.claim("x") is None
    assert not file.exists()
    theirs._closed.clear()
    monkeypatch.setattr(module, "RENEW_S", 0.0)
    theirs._renew()
    with pytest.raises(LostLease):
        theirs.claim("z")


def test_another_machine_that_renews_keeps_its_claim_however_wrong_its_clock_is(store, monkeypatch):
    theirs, ours = Leases(store, "theirs"), Leases(store, "ours")
    assert theirs.claim("x") is None
    now = time.monotonic()
    for look in range(4):
        elsewhere(theirs, renewed_ago_s=1e6 - look)
        monkeypatch.setattr(module.time, "monotonic", lambda look=look: now + look * module.WATCH_S * 2)
        assert ours.claim("x").host == "far-away"


def test_a_damaged_owner_counts_until_it_renews_nothing(store, monkeypatch):
    theirs, ours = Leases(store, "theirs"), Leases(store, "ours")
    assert theirs.claim("x") is None
    file = elsewhere(theirs, renewed_ago_s=2 * module.EXPIRE_S)
    file.write_text("{")
    os.utime(file, (1, 1))
    assert ours.claim("x").what == "a process"
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + module.WATCH_S + 1)
    assert ours.claim("x") is None


def test_who_has_the_path_to_itself_waits_for_all_and_all_wait_for_it(store, monkeypatch):
    monkeypatch.setattr(module, "POLL_S", 0.01)
    works, cleans, said = Leases(store, "works"), Leases(store, "cleans"), []

    def ends(owner):
        said.append(owner.what)
        works.close()

    cleans.wait_until_alone(ends)
    late = Leases(store, "late")

    def cleaned(owner):
        said.append(owner.what)
        cleans.close()

    assert late.wait_until_shared(cleaned)
    assert said == ["works", "cleans"]


def contend(root: str, names: list[str], log: str) -> None:
    """Do each thing that is not done yet, while nobody else does it."""
    leases, random = Leases(Store(root), "contender"), int(time.time_ns()) % 7
    left = names[random:] + names[:random]
    while left:
        for name in tuple(left):
            if leases.claim(name) is not None:
                continue
            if not (done := Path(root, f"done-{name}")).exists():
                with open(log, "a") as file:
                    file.write(json.dumps([name, "begin", os.getpid()]) + "\n")
                time.sleep(0.01)
                with open(log, "a") as file:
                    file.write(json.dumps([name, "end", os.getpid()]) + "\n")
                done.touch()
            leases.release(name)
            left.remove(name)
    leases.close()


@pytest.mark.parametrize("time", range(5))
def test_processes_started_together_do_each_thing_once(store, tmp_path, time):
    names, log = [f"thing-{number}" for number in range(20)], tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=contend, args=(store.root, names, str(log))) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    begun = [name for name, what, _ in map(json.loads, log.read_text().splitlines()) if what == "begin"]
    assert sorted(begun) == sorted(names)


class Tasks:
    """A source of tasks, and what its listener hears."""

    hands_out_ahead = True

    def __init__(self, *tasks: Task) -> None:
        self.left, self.heard = list(tasks), []

    def next_task(self):
        return self.left.pop(0) if self.left else None

    def is_exhausted(self):
        return not self.left

    def waits_for(self, owner):
        self.heard.append(("waits", owner.what))

    def finished_elsewhere(self, task):
        self.heard.append(("elsewhere", task.id))

    def finished(self, task):
        self.heard.append(("finished", task.id))

    def failed(self, task, failure):
        self.heard.append(("failed", task.id))


def test_a_task_of_another_process_is_left_to_it_and_done_here_if_it_gives_up(store, monkeypatch):
    monkeypatch.setattr("sweeps.execution.claims.POLL_S", 0.0)
    theirs, ours = Leases(store, "theirs"), Leases(store, "ours")
    first, second, third = (Task(job=tiny_base("scratch", seed=seed)) for seed in range(3))
    theirs.claim(first.job.run_id)
    theirs.claim(second.job.run_id)
    inner, finished = Tasks(first, second, third), set()
    tasks = ClaimedTasks(inner, inner, ours, lambda task: task.id in finished)
    assert tasks.next_task() == third and tasks.next_task() is None and not tasks.is_exhausted()
    finished.add(first.id)
    theirs.release(first.job.run_id)
    assert tasks.next_task() is None and ("elsewhere", first.id) in inner.heard
    theirs.release(second.job.run_id)  # not finished: it has failed, or was stopped
    assert tasks.next_task() == second and tasks.is_exhausted()
    assert theirs.claim(second.job.run_id).what == "ours"
    tasks.finished(second)
    tasks.failed(third, None)
    assert inner.heard == [("waits", "theirs"), ("elsewhere", first.id), ("finished", second.id), ("failed", third.id)]
    assert theirs.claim(second.job.run_id) is None and theirs.claim(third.job.run_id) is None
    ours.is_lost = True
    inner.left = [third]
    with pytest.raises(StoppedSweep, match="took this one for dead"):
        tasks.next_task()


def test_a_command_waits_and_says_for_whom(store, other, tmp_path):
    from tests.commands import command, environment

    dry = subprocess.run(command(Path(store.root), "--dry-run"), capture_output=True, text=True, env=environment())
    assert dry.returncode == 0 and "waiting" not in dry.stdout, "a dry run only reads"
    said = (tmp_path / "said").open("w+")
    with subprocess.Popen(
        command(Path(store.root), "--clean", "--yes"), stdout=said, stderr=subprocess.STDOUT, env=environment()
    ) as process:
        wait_for(lambda: "Ctrl-C to leave" in Path(said.name).read_text(), "the other process is named")
        assert f"process {other.pid}, since" in Path(said.name).read_text() and process.poll() is None
        other.kill()
        other.wait()
        assert process.wait(timeout=120) == 0
    assert "Nothing to delete" in Path(said.name).read_text()
