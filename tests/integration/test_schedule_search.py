"""The real search on real Ray clusters: its runs and files, processes killed under it, and what a grid makes of its result."""

import csv
import json
import shutil
import signal
from pathlib import Path

import optuna
import psutil
import pytest

from tests.commands import PATIENCE_S, TRANSFER, matches, runs, start, sweep, wait_for

pytestmark = pytest.mark.slow

SEARCH = [*TRANSFER, "--methods", "fine"]
ALONE = [
    "--sampler",
    "random",
    "--max-concurrent",
    "1",
    "--proxy-samples",
    "12",
]  # one after the other: the same search gives the same study
TRIALS = ["--trials", "6"]


def search(store: Path, *options: str, expect: int = 0) -> str:
    return sweep(store, *SEARCH, *ALONE, *options, script="schedule_search", expect=expect)


def trials(store: Path) -> list[dict]:
    storage = f"sqlite:///{store}/optuna.db"
    (name,) = optuna.get_all_study_names(storage)
    return [
        {"number": t.number, "state": t.state.name, "params": t.params, "values": t.values, "rungs": t.intermediate_values}
        for t in optuna.load_study(study_name=name, storage=storage).trials
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A search that nobody disturbed."""
    store = tmp_path_factory.mktemp("whole") / "store"
    output = search(store, *TRIALS, "--runner", "tune")
    assert "Best settings by size" in output and "trial 0 diff-tuning linear: done" in output
    return store


def test_a_search_leaves_a_study_runs_files_and_settings_for_a_grid(whole):
    found = trials(whole)
    assert [trial["number"] for trial in found] == list(range(6))
    assert {trial["state"] for trial in found} == {"COMPLETE", "PRUNED"}, "some are stopped early, some are not"
    scored = [trial for trial in found if trial["state"] == "COMPLETE"]
    assert len(list(whole.glob("transfer/*/record.json"))) == len(scored)
    assert not any((whole / "tune").rglob("checkpoint_*")), "no trial leaves its checkpoints"

    client, (parent,), children = runs(whole, "schedule-search")
    assert parent.info.status == "FINISHED" and parent.data.metrics["trials_scored"] == len(scored)
    assert sorted(child.info.status for child in children) == sorted(
        {"COMPLETE": "FINISHED", "PRUNED": "KILLED"}[trial["state"]] for trial in found
    )
    for child in children:
        steps = [metric.step for metric in client.get_metric_history(child.info.run_id, "train/loss")]
        assert steps == sorted(set(steps)) and ("fid" in child.data.metrics) == (child.info.status == "FINISHED")
        assert "proxy/fid" in child.data.metrics
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"trials.csv", "best.json", "best-schedules.png", "history-diff-tuning-L2-D16.png"} <= artifacts
    (report,) = (whole / "reports").iterdir()
    rows = list(csv.DictReader((report / "trials.csv").open()))
    assert [float(row["fid"]) for row in rows if row["fid"]] == [trial["values"][0] for trial in scored]
    (best,) = json.loads((report / "best.json").read_text())["tuned"]
    assert best["found"]["fid"] == min(trial["values"][0] for trial in scored)

    before = {file: file.stat().st_mtime_ns for file in whole.rglob("record.json")}
    output = search(whole, *TRIALS, "--runner", "tune")
    assert "starting Ray" not in output and trials(whole) == found
    plan = sweep(
        whole, *SEARCH, "--transfer", "full", "--schedules", f"@{report / 'best.json'}", "--forgetting", "none", "--dry-run"
    )
    (line,) = (line for line in plan.splitlines() if "transfer " in line and "diff-tuning" in line)
    assert line.split()[-1] == "done", "the grid finds what the search has computed"
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("record.json")} == before


def test_killed_twice_and_run_again_is_the_same_study(whole, tmp_path):
    """SIGKILL of a worker in the middle of a training, then of the driver in the middle of another."""
    store = tmp_path / "store"
    options = [*SEARCH, *ALONE, *TRIALS, "--runner", "tune", "--checkpoint-every-steps", "1"]
    with start(store, *options, script="schedule_search") as process:
        checkpoints = "tune/*/*.[st]*/checkpoint_*"
        wait_for(lambda: matches(store, f"{checkpoints}/progress.json"), "a checkpoint", process=process)
        workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "_trial" in p.name() or trial_actor(p)]
        assert workers, "a Tune trial's process is there to be killed"
        for worker in workers:
            worker.kill()
        done = len(matches(store, "transfer/*/record.json"))
        wait_for(lambda: len(matches(store, "transfer/*/record.json")) > done, "a later result", process=process)
        known = set(matches(store, "tune/*/*.[st]*"))
        wait_for(lambda: {f.parent for f in matches(store, checkpoints)} - known, "a later checkpoint", process=process)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=PATIENCE_S)
    assert any(trial["state"] == "RUNNING" for trial in trials(store)), "the driver died in the middle of a trial"
    search(store, *TRIALS, "--runner", "tune", "--checkpoint-every-steps", "1")
    assert trials(store) == trials(whole), "as many trials, none lost, none double, and the same scores"
    _, (parent,), children = runs(store, "schedule-search")
    _, _, undisturbed = runs(whole, "schedule-search")
    assert parent.info.status == "FINISHED"
    statuses = {child.data.tags["trial_id"]: child.info.status for child in children}
    assert len(statuses) == len(children) and statuses == {c.data.tags["trial_id"]: c.info.status for c in undisturbed}


def trial_actor(process: psutil.Process) -> bool:
    try:
        return any("ImplicitFunc" in part for part in process.cmdline())
    except psutil.Error:
        return False


def test_rungs_go_on_in_worker_groups_too(whole, tmp_path):
    store = Path(shutil.copytree(whole, tmp_path / "store"))
    for folder in ("transfer", "score", "reports"):
        shutil.rmtree(store / folder)
    for file in ("optuna.db", "mlflow.db"):
        (store / file).unlink()
    search(store, "--trials", "1", "--runner", "train", "--reduction-factor", "4")
    trial = trials(store)[0]
    assert trial["values"] == trials(whole)[0]["values"] and list(trial["rungs"]) == [1], "one rung, then to the end"
    (delta,) = store.glob("transfer/*/delta.safetensors")
    assert delta.read_bytes() == (whole / delta.relative_to(store)).read_bytes()
    assert not any((store / "train").glob("*"))
