"""Sweeps that are started together on one storage path: each job is computed once, each point has one run in each sweep."""

import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.commands import PATIENCE_S, TRANSFER, command, environment, matches, runs, wait_for, weights
from tests.injection import FAULTS

pytestmark = pytest.mark.slow


def together(store: Path, commands: list[list[str]], before_the_end=lambda processes: None) -> tuple[list[str], Counter]:
    """What commands print that are started at once, and how often each job was published."""
    published = store.parent / "published"
    variables = {"PYTHONPATH": str(FAULTS), "FAULTS": "trainables.storage.store:Store.publish:0:nobody"}
    variables["FAULTS_DONE"] = str(published)
    outputs = [store.parent / f"output-{number}" for number in range(len(commands))]
    processes = []
    for arguments, output in zip(commands, outputs, strict=True):
        with output.open("w") as file:
            process = subprocess.Popen(arguments, env={**environment(), **variables}, stdout=file, stderr=subprocess.STDOUT)
            processes.append(process)
    try:
        before_the_end(processes)
        for process in processes:
            process.wait(timeout=PATIENCE_S)
    finally:
        for process in processes:
            process.kill()
    said = [output.read_text() for output in outputs]
    return said, Counter((store.parent / "published-0").read_text().split())


def check_runs(store: Path, experiment: str = "size-grid") -> None:
    """One parent a sweep, one child a point in it, no step twice, all finished."""
    client, parents, children = runs(store, experiment)
    assert len({parent.data.tags["sweep_id"] for parent in parents}) == len(parents)
    keys = [(child.data.tags["mlflow.parentRunId"], child.data.tags["trial_id"]) for child in children]
    assert len(set(keys)) == len(keys)
    for run in (*parents, *children):
        assert run.info.status in ("FINISHED", "KILLED"), run.data.tags
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]
        assert len(set(steps)) == len(steps)


def test_one_sweep_twice_and_another_that_shares_its_jobs(alone, tmp_path):
    store = tmp_path / "store"
    same = command(store, "--runner", "tune")
    said, published = together(store, [same, same, command(store, "--runner", "tune", "--depths", "2,4")])
    assert all("FID" in text for text in said) and max(published.values()) == 1, published
    assert sum("waiting for size_grid.py on" in text for text in said[:2]) == 1, "the second waits, and says for whom"
    assert weights(alone).items() <= weights(store).items()
    check_runs(store)
    assert not [*(store / ".leases").iterdir()], "nobody works here any more"


def test_a_sweep_that_dies_leaves_its_jobs_to_the_one_that_waits(alone, tmp_path):
    store = tmp_path / "store"
    same = command(store, "--runner", "tune", "--max-concurrent", "1")

    def kill_who_works(processes):
        wait_for(lambda: matches(store, "tune/*/*/checkpoint_*"), "a checkpoint")
        outputs = [store.parent / f"output-{number}" for number in range(2)]
        wait_for(lambda: any("waiting for" in output.read_text() for output in outputs), "one waits")
        working = next(i for i, output in enumerate(outputs) if "waiting for" not in output.read_text())
        processes[working].send_signal(signal.SIGKILL)

    together(store, [same, same], kill_who_works)
    assert weights(store) == weights(alone)
    check_runs(store)


def test_one_search_twice(alone, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(alone / "extractor", store / "extractor")
    options = [*TRANSFER, "--trials", "3", "--no-early-stopping", "--study-sampler", "random", "--runner", "tune"]
    same = command(store, *options, script="schedule_search")
    said, published = together(store, [same, same])
    assert all("FID" in text for text in said) and max(published.values()) == 1, published
    check_runs(store, "schedule-search")
    _, _, children = runs(store, "schedule-search")
    assert len(children) == 3
