"""MLflow runs: reopened runs log no step twice, a store that was away is completed from the records, reasons are shown raw."""

import io
import signal

import pytest
from rich.console import Console

from mlflow_setup.runs import SweepRuns
from mlflow_setup.tracking import open_tracking
from sweeps.monitor import ProgressView
from sweeps.planning import Plan
from tests.tiny import tiny_trial

HISTORY = [{"step": step, "train/loss": 1.0 / step} for step in (10, 20, 30)]


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    return open_tracking(f"sqlite:///{folder}/mlflow.db", "test", folder)


def logged_steps(tracking, runs: SweepRuns, trial_id: str) -> list[int]:
    history = tracking.client.get_metric_history(runs.children[trial_id].run_id, "train/loss")
    return sorted(metric.step for metric in history)


def status(tracking, run_id: str) -> str:
    return tracking.client.get_run(run_id).info.status


@pytest.mark.parametrize("finish", [True, False])
def test_a_reopened_run_logs_no_step_twice(tracking, finish):
    for attempt in range(2):
        runs = SweepRuns(tracking, f"sweep-{finish}", "sweep", {"seed": 0})
        runs.start_child("trial", "a trial", {"method": "fine"}, {"depth": 2})
        runs.log_history("trial", HISTORY[: 2 + attempt])
        if finish:
            runs.finish_child("trial", {"fid": 1.0}, HISTORY, [])
        runs.close("FINISHED")
    assert logged_steps(tracking, runs, "trial") == [10, 20, 30]
    expected = "FINISHED" if finish else "KILLED"
    assert status(tracking, runs.children["trial"].run_id) == expected


def test_what_the_store_missed_is_written_at_the_end(tracking, monkeypatch):
    runs = SweepRuns(tracking, "away", "sweep", {})
    runs.start_child("trial", "a trial", {}, {})
    runs.log_history("trial", HISTORY[:1])
    with monkeypatch.context() as patch:

        def away(*arguments, **options):
            raise ConnectionError("the server is away")

        patch.setattr(tracking.client, "log_batch", away)
        patch.setattr(tracking.client, "create_run", away)
        runs.log_history("trial", HISTORY[1:2])
        runs.start_child("late", "a late trial", {}, {})
        runs.log_history("late", HISTORY[:1])
        runs.finish_child("trial", {"fid": 1.0}, HISTORY, [])
    assert not runs.is_finished("trial") and "late" not in runs.children
    for trial_id in ("trial", "late"):
        runs.start_child(trial_id, trial_id, {}, {})
        runs.finish_child(trial_id, {"fid": 1.0}, HISTORY, [])
        assert runs.is_finished(trial_id) and logged_steps(tracking, runs, trial_id) == [10, 20, 30]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_until_the_write_is_over(tracking, number):
    runs, written = SweepRuns(tracking, "interrupted", "sweep", {}), []

    def write() -> None:
        signal.raise_signal(number)
        written.append(True)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        runs.attempt(write)
    assert written and handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]


def test_a_failed_child_keeps_its_reason(tracking):
    runs = SweepRuns(tracking, "failed", "sweep", {})
    runs.start_child("trial", "a trial", {}, {})
    runs.fail_child("trial", "the loss is nan")
    runs.close("FAILED")
    run = tracking.client.get_run(runs.children["trial"].run_id)
    assert (run.info.status, run.data.tags["failure_reason"]) == ("FAILED", "the loss is nan")
    assert status(tracking, runs.parent_id) == "FAILED"


def test_reasons_with_brackets_are_shown_as_they_are():
    trial = tiny_trial("scratch")
    output = io.StringIO()
    console = Console(file=output, width=200)
    with ProgressView(console, Plan(source=(), base=(trial,)), finished=set()) as view:
        view.begin_stage("base", "1 job", 1)
        view.started(trial)
        view.failed(trial, "[/pytorch/gloo/transport/tcp/pair.cc:534] Connection closed by peer [rank1]")
    assert "failed: [/pytorch/gloo/transport/tcp/pair.cc:534] Connection closed by peer [rank1]" in output.getvalue()
