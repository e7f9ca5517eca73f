"""Parent and child runs of a sweep, written by the sweep's own process alone.

One writer means no locked databases, one place that sets a status, and nothing to import in the workers. What could not be
written while the store was away is written at the end: every trial's record holds its whole history.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mlflow_setup.tracking import Tracking

T = TypeVar("T")
BATCH_LIMIT = 1000  # metrics in one MLflow request
PARENT_TAG = "mlflow.parentRunId"
OUTCOME_TAG = "outcome"

logger = logging.getLogger("fine-sweeps")


@dataclass(kw_only=True)
class _Child:
    run_id: str
    status: str
    stopped: bool = False
    logged_steps: set[int] = field(default_factory=set)


class SweepRuns:
    """The runs of one sweep. The same sweep opened again goes on in the runs it had."""

    def __init__(self, tracking: Tracking, sweep_id: str, name: str, params: dict[str, Any]) -> None:
        self.client, self.experiment_id = tracking.client, tracking.experiment_id
        self.children: dict[str, _Child] = {}
        found = self.client.search_runs([self.experiment_id], f"tags.sweep_id = '{sweep_id}'", max_results=1)
        if found:
            self.parent_id = found[0].info.run_id
            self.client.update_run(self.parent_id, status="RUNNING")
            self._find_children()
        else:
            run = self.client.create_run(self.experiment_id, run_name=name, tags={"sweep_id": sweep_id})
            self.parent_id = run.info.run_id
            for key, value in params.items():
                self.client.log_param(self.parent_id, key, value)

    def _find_children(self) -> None:
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], f"tags.`{PARENT_TAG}` = '{self.parent_id}'", max_results=1000, page_token=token
            )
            for run in page:
                tags = run.data.tags
                self.children[tags["trial_id"]] = _Child(
                    run_id=run.info.run_id, status=run.info.status, stopped=OUTCOME_TAG in tags
                )
            token = page.token
            if not token:
                return

    def is_finished(self, trial_id: str) -> bool:
        return trial_id in self.children and self.children[trial_id].status == "FINISHED"

    def is_stopped(self, trial_id: str) -> bool:
        """Whether its run says that the trial was given up on purpose."""
        return trial_id in self.children and self.children[trial_id].stopped

    def start_child(self, trial_id: str, name: str, tags: dict[str, str], params: dict[str, Any]) -> None:
        """Open the trial's run, or its old one again."""

        def write() -> None:
            from mlflow.entities import Param

            if trial_id in self.children:
                child = self.children[trial_id]
                history = self.client.get_metric_history(child.run_id, "train/loss")
                child.logged_steps = {metric.step for metric in history}
                self.client.update_run(child.run_id, status="RUNNING")
                child.status = "RUNNING"
                return
            all_tags = {PARENT_TAG: self.parent_id, "trial_id": trial_id, **tags}
            run = self.client.create_run(self.experiment_id, run_name=name, tags=all_tags)
            self.children[trial_id] = _Child(run_id=run.info.run_id, status="RUNNING")
            self.client.log_batch(run.info.run_id, params=[Param(k, str(v)) for k, v in params.items()])

        self.attempt(write)

    def log_history(self, trial_id: str, history: list[dict[str, float]]) -> None:
        """Write the entries (each with its `step`) that the run does not have yet."""
        child = self.children.get(trial_id)
        if child is None:  # its run could not be created; at the end of the sweep it is, with all of its history
            return
        fresh = [entry for entry in history if entry["step"] not in child.logged_steps]

        def write() -> None:
            self._log(child.run_id, [(k, v, e["step"]) for e in fresh for k, v in e.items() if k != "step"])
            child.logged_steps.update(entry["step"] for entry in fresh)

        if fresh:
            self.attempt(write)

    def finish_child(
        self, trial_id: str, metrics: dict[str, float], history: list[dict[str, float]], files: list[Path]
    ) -> None:
        """Complete the trial's run from its record; nothing is done to a run that is finished already."""
        child = self.children.get(trial_id)
        if child is None or child.status == "FINISHED":
            return
        self.log_history(trial_id, history)

        def write() -> None:
            last_step = int(history[-1]["step"]) if history else 0
            self._log(child.run_id, [(name, value, last_step) for name, value in metrics.items()])
            for file in files:
                self.client.log_artifact(child.run_id, str(file), "samples")
            self._end(child, "FINISHED")

        self.attempt(write)

    def log_metrics(self, trial_id: str, metrics: dict[str, float], *, step: int) -> None:
        """Write metrics of one step into the trial's run, once."""
        if trial_id in self.children:
            run_id = self.children[trial_id].run_id
            self.attempt(lambda: self._log(run_id, [(name, value, step) for name, value in metrics.items()]))

    def stop_child(self, trial_id: str, reason: str) -> None:
        """End the run of a trial that was given up on purpose."""

        def write() -> None:
            child = self.children[trial_id]
            self.client.set_tag(child.run_id, OUTCOME_TAG, reason)
            self._end(child, "KILLED")
            child.stopped = True

        if trial_id in self.children:
            self.attempt(write)

    def fail_child(self, trial_id: str, reason: str) -> None:
        def write() -> None:
            child = self.children[trial_id]
            self.client.set_tag(child.run_id, "failure_reason", reason[:4000])
            self._end(child, "FAILED")

        self.attempt(write)

    def tag_child(self, trial_id: str, key: str, value: str) -> None:
        if trial_id in self.children:
            self.attempt(lambda: self.client.set_tag(self.children[trial_id].run_id, key, value))

    def close(self, status: str, metrics: dict[str, float] | None = None) -> None:
        """End the parent run with `status`; children still running were stopped with the sweep."""

        def write() -> None:
            for child in self.children.values():
                if child.status == "RUNNING":
                    self._end(child, "KILLED")
            self._log(self.parent_id, [(name, value, 0) for name, value in (metrics or {}).items()])
            self.client.set_terminated(self.parent_id, status)

        self.attempt(write)

    def log_files(self, files: list[Path], folder: str | None = None) -> None:
        """Attach files to the parent run."""

        def write() -> None:
            for file in files:
                self.client.log_artifact(self.parent_id, str(file), folder)

        self.attempt(write)

    def _end(self, child: _Child, status: str) -> None:
        self.client.set_terminated(child.run_id, status)
        child.status = status

    def _log(self, run_id: str, values: list[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now_ms, int(step)) for name, value, step in values]
        for start in range(0, len(metrics), BATCH_LIMIT):
            self.client.log_batch(run_id, metrics=metrics[start : start + BATCH_LIMIT])

    def attempt(self, write: Callable[[], T]) -> T | None:
        """Training goes on when the store is away; the same sweep run again completes its runs from the records."""
        try:
            with _uninterrupted():
                return write()
        except Exception as error:
            logger.warning("MLflow did not take a record (%s); run the sweep again to complete it", str(error)[:200])
            return None


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until a write is over: a transaction cut off in its commit would leave the database locked."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    # A handler that Python did not set (None) could not be put back.
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not None]
    before = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt
