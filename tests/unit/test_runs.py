"""MLflow runs: nothing is lost while the store is away, no step is written twice, statuses tell the truth."""

import gc
import io
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from rich.console import Console

from mlflow_setup import runs as runs_module
from mlflow_setup import writer as writer_module
from mlflow_setup.runs import SweepRuns
from mlflow_setup.tracking import Tracking, TrackingError, open_tracking
from mlflow_setup.writer import BackgroundWriter
from sweeps.display.progress import ProgressView
from sweeps.planning.plan import Found, Plan
from tests.tiny import tiny_base, tiny_score, tiny_transfer
from trainables.failures import Failure, FailureKind
from trainables.specs.tasks import Task
from trainables.specs.transfers import RungSpec

HISTORY = [{"step": step, "train/loss": 1.0 / step, "train/speed": 2.0} for step in (10, 20, 30)]


class Flaky:
    """A client whose store can go away, or answer only after it has done what was asked."""

    def __init__(self, client) -> None:
        self.client, self.away, self.loses_answers = client, False, False
        self.asked: set[str] = set()

    def __getattr__(self, name):
        def call(*arguments, **options):
            if self.away:
                raise ConnectionError("the server is away")
            answer = getattr(self.client, name)(*arguments, **options)
            if self.loses_answers and name not in self.asked and name != "get_experiment":
                self.asked.add(name)
                raise ConnectionError("the answer is lost")
            return answer

        return call


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    return open_tracking(f"sqlite:///{folder}/mlflow.db", "test", folder)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pauses and bounds of a tenth."""
    for name in ("FIRST_PAUSE_S", "LONGEST_PAUSE_S", "LAST_PAUSE_S", "DRAIN_FAILING_S"):
        monkeypatch.setattr(writer_module, name, getattr(writer_module, name) / 10)


def flaky(tracking) -> Tracking:
    experiment, spool = tracking.experiment_id, tracking.spool_folder
    return Tracking(uri=tracking.uri, experiment_id=experiment, client=Flaky(tracking.client), spool_folder=spool)


def child(tracking, runs: SweepRuns, trial_id: str):
    """The trial's run in the store; there is one at most."""
    query = f"tags.`mlflow.parentRunId` = '{runs.parent_id}' and tags.trial_id = '{trial_id}'"
    found = tracking.client.search_runs([tracking.experiment_id], query)
    assert len(found) <= 1
    return found[0] if found else None


def logged_steps(tracking, runs: SweepRuns, trial_id: str, key: str = "train/loss") -> list[int]:
    """In the order of their times."""
    return [m.step for m in tracking.client.get_metric_history(child(tracking, runs, trial_id).info.run_id, key)]


def status(tracking, run_id: str) -> str:
    return tracking.client.get_run(run_id).info.status


@contextmanager
def interrupted_after(seconds: float):
    """Ctrl-C, by a signal that no shell makes its background jobs ignore."""
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    threading.Timer(seconds, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR1)).start()
    gc.disable()  # Python swallows an interrupt that finds it in a callback of the garbage collection
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        gc.enable()
        signal.signal(signal.SIGUSR1, before)


def written(runs: SweepRuns) -> None:
    """Wait for the writer."""
    deadline = time.monotonic() + 20
    while len(runs.writer.spool):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def crash(runs: SweepRuns) -> None:
    """What SIGKILL leaves of a writer: its file."""
    runs.writer.stopped = True
    runs.writer.thread.join()


@pytest.mark.parametrize("finish", [True, False])
def test_a_reopened_run_logs_no_step_twice(tracking, finish):
    for attempt in range(2):
        runs = SweepRuns(tracking, f"sweep-{finish}", "sweep", {"seed": 0})
        runs.start_child("trial", "a trial", {"method": "fine"}, {"depth": 2 + attempt})
        runs.log_history("trial", HISTORY[: 2 + attempt])
        runs.log_metrics("trial", {"proxy/fid": 3.0 + attempt}, step=20)
        if finish:
            runs.finish_child("trial", {"fid": 1.0}, HISTORY, [])
        runs.close("FINISHED")
    for key in ("train/loss", "train/speed"):
        assert logged_steps(tracking, runs, "trial", key) == [10, 20, 30]
    assert logged_steps(tracking, runs, "trial", "proxy/fid") == [20]
    run = child(tracking, runs, "trial")
    assert run.info.status == ("FINISHED" if finish else "KILLED") and run.data.params == {"depth": "2"}
    assert tracking.client.get_run(runs.parent_id).data.params == {"seed": "0"}
    assert status(tracking, runs.parent_id) == "FINISHED" and not any(tracking.spool_folder.iterdir())


def test_a_report_that_was_lost_is_completed_in_its_place(tracking):
    for reported in (HISTORY[:1], HISTORY[2:]):  # SIGKILL came between the checkpoint of step 20 and its report
        runs = SweepRuns(tracking, "place", "sweep", {})
        runs.start_child("trial", "a trial", {}, {})
        runs.log_history("trial", reported)
        written(runs)
        crash(runs)
    runs = SweepRuns(tracking, "place", "sweep", {})
    runs.finish_child("trial", {"fid": 1.0}, HISTORY, [])
    runs.close("FINISHED")
    for key in ("train/loss", "train/speed"):
        assert logged_steps(tracking, runs, "trial", key) == [10, 20, 30]


def test_a_store_that_is_away_from_start_to_end_loses_nothing(tracking, tmp_path):
    away, file = flaky(tracking), tmp_path / "samples.png"
    file.write_bytes(b"picture")
    runs = SweepRuns(away, "away", "sweep", {})
    written(runs)
    away.client.away = True
    runs.start_child("trial", "a trial", {"pareto": "unknown"}, {"depth": 2})
    runs.log_history("trial", HISTORY[:1])
    runs.log_history("trial", HISTORY[1:2])
    runs.start_child("stopped", "a stopped trial", {}, {})
    runs.stop_child("stopped", "not promising")
    runs.tag_child("trial", "pareto", "true")
    runs.finish_child("trial", {"fid": 1.0}, HISTORY, [file])
    runs.log_files([file, tmp_path / "gone.png"], "pictures")
    assert runs.is_finished("trial") and runs.is_stopped("stopped"), "answered at once, from here"
    runs.close("FINISHED", {"points_done": 1})
    assert child(tracking, runs, "trial") is None
    runs.writer.thread.join()

    again = SweepRuns(tracking, "away", "sweep", {})
    assert again.is_finished("trial") and again.is_stopped("stopped") and not again.is_finished("stopped")
    again.close("FINISHED")
    assert again.parent_id == runs.parent_id
    run = child(tracking, runs, "trial")
    assert (run.info.status, run.data.tags["pareto"], run.data.metrics["fid"]) == ("FINISHED", "true", 1.0)
    assert logged_steps(tracking, runs, "trial") == [10, 20, 30]
    assert run.info.start_time <= run.info.end_time <= tracking.client.get_run(runs.parent_id).info.end_time
    assert [f.path for f in tracking.client.list_artifacts(run.info.run_id, "samples")] == ["samples/samples.png"]
    assert [f.path for f in tracking.client.list_artifacts(runs.parent_id, "pictures")] == ["pictures/samples.png"]
    assert child(tracking, runs, "stopped").info.status == "KILLED"
    assert tracking.client.get_run(runs.parent_id).data.metrics["points_done"] == 1


def test_a_store_that_goes_away_before_the_first_run_is_one_line(tracking):
    away = flaky(tracking)
    away.client.away = True
    with pytest.raises(TrackingError, match=r"^MLflow cannot be used any more \(the server is away\)$"):
        SweepRuns(away, "never-opened", "sweep", {})


def test_a_write_whose_answer_was_lost_is_told_twice_and_stored_once(tracking, tmp_path):
    losing, file = flaky(tracking), tmp_path / "samples.png"
    file.write_bytes(b"picture")
    losing.client.loses_answers = True
    with pytest.raises(TrackingError):
        SweepRuns(losing, "answers", "sweep", {})  # its search
    with pytest.raises(TrackingError):
        SweepRuns(losing, "answers", "sweep", {})  # its own run, which the next one finds
    losing.client.asked.clear()
    losing.client.asked |= {"search_runs", "create_run"}
    runs = SweepRuns(losing, "answers", "sweep", {"seed": 0})
    losing.client.asked.remove("create_run")
    runs.start_child("trial", "a trial", {}, {"depth": 2})
    runs.log_history("trial", HISTORY)
    runs.finish_child("trial", {"fid": 1.0, "nan": float("nan")}, HISTORY, [file])
    runs.close("FINISHED", {"points_done": 1})
    assert {"create_run", "log_batch", "log_artifact", "set_terminated"} <= losing.client.asked
    run = child(tracking, runs, "trial")
    assert run.info.status == "FINISHED" and run.data.params == {"depth": "2"}
    assert logged_steps(tracking, runs, "trial") == [10, 20, 30]
    assert logged_steps(tracking, runs, "trial", "nan") == logged_steps(tracking, runs, "trial", "fid") == [30]


def test_what_was_taken_but_not_marked_before_a_crash_is_stored_once(tracking):
    away = flaky(tracking)
    runs = SweepRuns(away, "crash", "sweep", {})
    written(runs)
    away.client.away = True
    history = [{"step": step, "train/loss": 1.0 / step, "train/speed": 2.0} for step in range(1, 1001)]  # several batches
    runs.start_child("trial", "a trial", {}, {})
    runs.log_history("trial", history[:600])
    runs.log_history("trial", history[600:])
    before = runs.writer.spool.path.read_bytes()
    away.client.away = False
    written(runs)
    crash(runs)
    runs.writer.spool.path.write_bytes(before)
    again = SweepRuns(tracking, "crash", "sweep", {})
    again.start_child("trial", "a trial", {}, {})
    again.log_history("trial", history[500:])  # as training from its last checkpoint does
    again.finish_child("trial", {"fid": 1.0}, history, [])
    again.close("FINISHED")
    for key in ("train/loss", "train/speed"):
        assert logged_steps(tracking, again, "trial", key) == list(range(1, 1001))
    assert child(tracking, again, "trial").info.status == "FINISHED"


def test_a_sweep_killed_at_any_moment_and_started_again_has_every_step_once(tracking):
    code = f"""
import logging, sys
from pathlib import Path
from mlflow_setup.runs import SweepRuns
from mlflow_setup.tracking import open_tracking
folder = Path({str(tracking.spool_folder.parent)!r})
tracking = open_tracking("sqlite:///" + str(folder / "mlflow.db"), "test", folder)
runs = SweepRuns(tracking, "killed", "sweep", {{}})
history = []
for trial in map(str, range(4)):
    runs.start_child(trial, trial, {{}}, {{"depth": 2}})
for step in range(1, 151):
    history.append({{"step": step, "train/loss": 1.0 / step}})
    for trial in map(str, range(4)):
        runs.log_history(trial, history[-1:])
    print(step, flush=True)
for trial in map(str, range(4)):
    runs.finish_child(trial, {{"fid": 1.0}}, history, [])
runs.close("FINISHED")
"""
    for last in (1, 40, 90, 140, None):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            if last is not None and int(line) >= last:
                process.kill()
                break
        process.communicate()
        assert process.returncode == (0 if last is None else -signal.SIGKILL)
    runs = SweepRuns(tracking, "killed", "sweep", {})
    runs.close("FINISHED")
    for trial in map(str, range(4)):
        assert logged_steps(tracking, runs, trial) == list(range(1, 151))
        assert logged_steps(tracking, runs, trial, "fid") == [150]
        run = child(tracking, runs, trial)
        assert run.info.status == "FINISHED" and run.data.params == {"depth": "2"}


def test_a_deleted_run_is_passed_over_and_the_others_go_on(tracking, caplog):
    runs = SweepRuns(tracking, "deleted", "sweep", {})
    for trial in ("deleted", "kept"):
        runs.start_child(trial, trial, {}, {})
    written(runs)
    tracking.client.delete_run(child(tracking, runs, "deleted").info.run_id)
    for trial in ("deleted", "kept"):
        runs.log_history(trial, HISTORY)
        runs.log_history(trial, [{"step": 40, "a bad; name": 1.0}])
        runs.finish_child(trial, {"a bad; name": 1.0}, HISTORY, [])
    runs.close("FINISHED")
    assert child(tracking, runs, "deleted") is None and child(tracking, runs, "kept").info.status == "FINISHED"
    assert logged_steps(tracking, runs, "kept") == [10, 20, 30] and status(tracking, runs.parent_id) == "FINISHED"
    lines = [record.getMessage() for record in caplog.records]
    assert sum("the run of deleted" in line for line in lines) == sum("the run of kept" in line for line in lines) == 1
    again = SweepRuns(tracking, "deleted", "sweep", {})
    assert not again.is_finished("deleted") and again.is_finished("kept"), "the same sweep gives it a new run"
    again.close("FINISHED")


def test_32_trials_at_once_beside_a_second_sweep_raise_no_lock_error(tracking, caplog, monkeypatch):
    errors: list[Exception] = []
    monkeypatch.setattr(BackgroundWriter, "_failed", lambda writer, writes, error: errors.append(error))

    def sweep(name: str) -> None:
        runs = SweepRuns(tracking, name, name, {})
        for trial in range(32):
            runs.start_child(str(trial), f"trial {trial}", {}, {"depth": 2})
        for step in range(1, 21):
            for trial in range(32):
                runs.log_history(str(trial), [{"step": step, "train/loss": 1.0 / step, "train/speed": 2.0}])
        for trial in range(32):
            runs.finish_child(str(trial), {"fid": float(trial)}, [], [])
        runs.close("FINISHED")
        opened[name] = runs

    opened: dict[str, SweepRuns] = {}
    threads = [threading.Thread(target=sweep, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and all("writing the last" in record.getMessage() for record in caplog.records)
    for runs in opened.values():
        query = f"tags.`mlflow.parentRunId` = '{runs.parent_id}'"
        found = tracking.client.search_runs([tracking.experiment_id], query)
        assert len(found) == 32 and {run.info.status for run in found} == {"FINISHED"}
        for trial in range(0, 32, 5):
            assert logged_steps(tracking, runs, str(trial)) == list(range(1, 21))


def test_what_is_asked_at_once_is_answered_or_given_up_within_bounds(tracking, monkeypatch, caplog):
    runs = SweepRuns(tracking, "attempts", "sweep", {})
    assert runs.attempt(lambda: "address") == "address"

    def away() -> str:
        raise ConnectionError("the server is away")

    assert runs.attempt(away) is None and "the server is away" in caplog.text
    monkeypatch.setattr(runs_module, "ATTEMPT_S", 0.1)
    assert runs.attempt(lambda: time.sleep(1)) is None and "no answer within 0.1 s" in caplog.text
    runs.close("FINISHED")


def test_an_interrupt_does_not_cut_a_write_off(tracking):
    """Ctrl-C finds the sweep waiting, in the middle of an enqueued write, or of one that is answered at once."""
    runs, finished = SweepRuns(tracking, "interrupted", "sweep", {}), []
    runs.start_child("trial", "a trial", {}, {})

    def write() -> None:
        time.sleep(0.3)
        finished.append(True)

    for during in (lambda: runs.attempt(write), lambda: [runs.log_history("trial", HISTORY) for _ in range(10**6)]):
        with interrupted_after(0.1):
            during()
    runs.close("KILLED")
    assert logged_steps(tracking, runs, "trial") == [10, 20, 30]
    assert child(tracking, runs, "trial").info.status == status(tracking, runs.parent_id) == "KILLED"
    time.sleep(0.3)
    assert finished


def test_an_interrupt_of_the_wait_at_the_end_keeps_the_status(tracking, monkeypatch, caplog):
    away = flaky(tracking)
    runs = SweepRuns(away, "interrupted-end", "sweep", {})
    away.client.away = True
    runs.start_child("trial", "a trial", {}, {})
    runs.finish_child("trial", {}, HISTORY, [])
    with interrupted_after(0.3):
        runs.close("FINISHED")
    runs.close("KILLED")
    assert caplog.text.count("the same command completes them") == 1
    runs.writer.thread.join()
    again = SweepRuns(tracking, "interrupted-end", "sweep", {})
    written(again)
    assert child(tracking, runs, "trial").info.status == "FINISHED" and status(tracking, runs.parent_id) == "RUNNING"
    again.close("FINISHED")


def test_a_failed_child_keeps_its_reason(tracking):
    runs = SweepRuns(tracking, "failed", "sweep", {})
    runs.start_child("trial", "a trial", {}, {})
    runs.fail_child("trial", "the loss is nan", kind="diverged", log="logs/trial.log")
    runs.close("FAILED")
    run = child(tracking, runs, "trial")
    assert (run.info.status, run.data.tags["failure_reason"]) == ("FAILED", "the loss is nan")
    assert (run.data.tags["failure_kind"], run.data.tags["failure_log"]) == ("diverged", "logs/trial.log")
    assert status(tracking, runs.parent_id) == "FAILED"


def test_reasons_with_brackets_are_shown_as_they_are():
    task = Task(job=tiny_base("scratch"))
    output = io.StringIO()
    console = Console(file=output, width=200, markup=False)
    with ProgressView(console, Plan(tasks=(task,)), found=Found(finished=frozenset())) as view:
        view.begin(1, {})
        view.started(task)
        reason = "[/pytorch/gloo/transport/tcp/pair.cc:534] Connection closed by peer [rank1]"
        view.failed(task, Failure(kind=FailureKind.DIED, reason=reason, log="logs/[job].log"))
    assert f"failed: died: {reason} (log: logs/[job].log)" in output.getvalue()


@pytest.mark.parametrize("is_rung", [False, True])
def test_the_live_view_takes_reports_of_every_kind_of_task(is_rung):
    rung = tiny_score(RungSpec(transfer=tiny_transfer("full"), step=3))
    task = Task(job=rung if is_rung else tiny_base("scratch"))
    with ProgressView(Console(file=io.StringIO(), width=200), Plan(tasks=(task,)), found=Found(finished=frozenset())) as view:
        view.begin(1, {})
        view.started(task)
        history = [{"step": 2, "train/loss": 0.5, "train/steps_per_s": 10.0}]
        view.reported(task, {"step": 2, "total_steps": 3, "phase": "full", "history": history})
        (bar,) = [one for one in view.progress.tasks if one.id == view.running[task.id]]
    assert bar.fields["info"] == "full loss 0.5000" + ("" if is_rung else " 160 images/s")
