"""Parent and child runs of a sweep, written by the sweep's own process alone.

With one writer no database is locked, one place sets a status, and workers do not import MLflow. The sweep does not wait for
the store: writes go into a spool, and a thread sends them to the store, at once or when the store is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mlflow_setup.run_store import PARENT_TAG, RunStore, Values
from mlflow_setup.spool import Spool, Write
from mlflow_setup.tracking import Tracking, TrackingError
from mlflow_setup.writer import BackgroundWriter, one_line

T = TypeVar("T")
OUTCOME_TAG = "outcome"
ATTEMPT_S = 25.0  # limit for writes that are waited for; longer than one request to a store that hangs

logger = logging.getLogger("fine-sweeps")


@dataclass(kw_only=True)
class _Child:
    """State of a trial's run after all pending writes."""

    status: str
    stopped: bool = False


class SweepRuns:
    """The runs of one sweep. A sweep that is started again continues its runs and its pending writes.

    Raises TrackingError if the store does not answer which runs these are.
    """

    def __init__(self, tracking: Tracking, sweep_id: str, name: str, params: dict[str, Any]) -> None:
        from mlflow.exceptions import MlflowException

        self.client, self.experiment_id = tracking.client, tracking.experiment_id
        self.children: dict[str, _Child] = {}
        self.closed = False
        try:
            self.parent_id = self._find_or_create(sweep_id, name)
        except (MlflowException, OSError) as error:
            raise TrackingError(f"MLflow cannot be used any more ({one_line(error)})") from error
        spool = Spool(tracking.spool_folder / f"{self.parent_id}.jsonl")  # one file per store and sweep: run ids are unique
        for write in spool.writes():
            self._note(write)
        self.writer = BackgroundWriter(spool, RunStore(self.client, self.experiment_id, self.parent_id))
        self._put("start", None, name=name, tags={}, params=_texts(params))

    def _find_or_create(self, sweep_id: str, name: str) -> str:
        """Run id of the parent run."""
        found = self.client.search_runs([self.experiment_id], f"tags.sweep_id = '{sweep_id}'", max_results=1)
        if not found:
            return self.client.create_run(self.experiment_id, run_name=name, tags={"sweep_id": sweep_id}).info.run_id
        self._find_children(found[0].info.run_id)
        return found[0].info.run_id

    def _find_children(self, parent_id: str) -> None:
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], f"tags.`{PARENT_TAG}` = '{parent_id}'", max_results=1000, page_token=token
            )
            for run in page:
                tags = run.data.tags
                self.children[tags["trial_id"]] = _Child(status=run.info.status, stopped=OUTCOME_TAG in tags)
            token = page.token
            if not token:
                return

    def _put(self, action: str, trial_id: str | None, **values: Any) -> None:
        write = Write(action=action, trial_id=trial_id, time_ms=int(time.time() * 1000), values=values)
        self._note(write)  # noted first: after an interrupt in between, `close` still ends the run
        self.writer.spool.append(write)

    def _note(self, write: Write) -> None:
        if write.trial_id is None:
            return
        if write.action == "start":
            self.children.setdefault(write.trial_id, _Child(status="RUNNING")).status = "RUNNING"
        elif write.action == "end" and write.trial_id in self.children:
            child = self.children[write.trial_id]
            child.status = write.values["status"]
            child.stopped |= OUTCOME_TAG in write.values["tags"]

    def is_finished(self, trial_id: str) -> bool:
        return trial_id in self.children and self.children[trial_id].status == "FINISHED"

    def is_stopped(self, trial_id: str) -> bool:
        """Whether the trial was stopped on purpose, according to its run."""
        return trial_id in self.children and self.children[trial_id].stopped

    def start_child(self, trial_id: str, name: str, tags: dict[str, str], params: dict[str, Any]) -> None:
        """Open the trial's run; an existing one is reopened."""
        self._put("start", trial_id, name=name, tags=tags, params=_texts(params))

    def log_history(self, trial_id: str, history: list[dict[str, float]]) -> None:
        """Write entries (each with its `step`) that the run does not have yet."""
        self._log(trial_id, [(k, float(v), int(e["step"])) for e in history for k, v in e.items() if k != "step"])

    def log_metrics(self, trial_id: str, metrics: dict[str, float], *, step: int) -> None:
        """Write metrics of one step into the trial's run. A step is written once."""
        self._log(trial_id, _at_step(metrics, step))

    def _log(self, trial_id: str | None, metrics: Values) -> None:
        if metrics and (trial_id is None or trial_id in self.children):
            self._put("log", trial_id, metrics=metrics)

    def _end(self, trial_id: str | None, status: str, **tags: str) -> None:
        """End a run by a separate write: a refused write before it must not leave the run open."""
        if trial_id is None or trial_id in self.children:
            self._put("end", trial_id, status=status, tags=tags)

    def finish_child(
        self, trial_id: str, metrics: dict[str, float], history: list[dict[str, float]], files: list[Path]
    ) -> None:
        """Complete the trial's run from its record. A finished run is not changed."""
        if trial_id not in self.children or self.is_finished(trial_id):
            return
        self.log_history(trial_id, history)
        self._attach(trial_id, files, "samples")
        self._log(trial_id, _at_step(metrics, int(history[-1]["step"]) if history else 0))
        self._end(trial_id, "FINISHED")

    def stop_child(self, trial_id: str, reason: str) -> None:
        """End the run of a trial that was stopped on purpose."""
        self._end(trial_id, "KILLED", **{OUTCOME_TAG: reason})

    def fail_child(self, trial_id: str, reason: str, *, kind: str, log: str) -> None:
        """End the run of a trial that failed; `log` is the path of the file with its traceback."""
        self._end(trial_id, "FAILED", failure_kind=kind, failure_reason=reason[:4000], failure_log=log)

    def tag_child(self, trial_id: str, key: str, value: str) -> None:
        if trial_id in self.children:
            self._put("tag", trial_id, key=key, value=value)

    def log_files(self, files: list[Path], folder: str | None = None) -> None:
        """Attach files to the parent run."""
        self._attach(None, files, folder)

    def _attach(self, trial_id: str | None, files: list[Path], folder: str | None) -> None:
        for file in files:
            self._put("attach", trial_id, file=str(Path(file).absolute()), folder=folder)

    def close(self, status: str, metrics: dict[str, float] | None = None) -> None:
        """End the parent run with `status`, wait (within bounds) until all is written, and report what is left for the sweep's
        next start. Child runs still open are marked as stopped. A second call does nothing, also after an interrupted wait.
        """
        if self.closed:
            return
        for trial_id, child in self.children.items():
            if child.status == "RUNNING":
                self._end(trial_id, "KILLED")
        self._log(None, _at_step(metrics or {}, 0))
        self._end(None, status)
        self.closed = True
        self.writer.close()

    def attempt(self, write: Callable[[], T]) -> T | None:
        """Call `write` now and return its result; None, with a warning, if the store is away.

        It runs in a thread: Ctrl-C during a commit would leave the database locked.
        """
        answers: list[T] = []
        errors: list[Exception] = [TimeoutError(f"no answer within {ATTEMPT_S:g} s")]

        def run() -> None:
            try:
                answers.append(write())
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="mlflow-attempt", daemon=True)
        thread.start()
        thread.join(ATTEMPT_S)
        if answers:
            return answers[0]
        logger.warning("MLflow did not take a record (%s); run the sweep again to complete it", one_line(errors[-1]))
        return None


def _texts(params: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in params.items()}


def _at_step(metrics: dict[str, float], step: int) -> Values:
    return [(name, float(value), step) for name, value in metrics.items()]
