"""Execution of writes in MLflow. Writes are idempotent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow_setup.spool import Write

BATCH_LIMIT, PARAM_LIMIT = 1000, 100  # metrics and parameters in one MLflow request
PARENT_TAG = "mlflow.parentRunId"
REFUSED = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")
UNCLEAR = (None, "INTERNAL_ERROR", "BAD_REQUEST")  # a refusal or an outage; None: not an MLflow error
Values = list[tuple[str, float, int]]  # metrics: name, value, step


class Refused(Exception):
    """The store refuses this write for good."""


class _Steps:
    """Steps of a metric in the store, with their times."""

    def __init__(self, metrics: Iterable[Any] = ()) -> None:
        self.times: dict[int, int] = {}
        self.newest = -1
        for metric in metrics:
            self.add(metric)

    def add(self, metric: Any) -> None:
        self.times[metric.step] = metric.timestamp
        self.newest = max(self.newest, metric.step)

    def time_of(self, step: int, time_ms: int) -> int:
        """Time to record for a step. MLflow sorts by time: a step that arrives late (after SIGKILL) must not sort last."""
        if step > self.newest:
            return time_ms
        return min(time_ms, *(time for other, time in self.times.items() if other > step))


@dataclass(kw_only=True)
class _Run:
    """A run and its metrics' steps. `unread` metrics may have steps of other processes, not yet read from the store."""

    run_id: str
    unread: set[str] = field(default_factory=set)
    steps: defaultdict[str, _Steps] = field(default_factory=lambda: defaultdict(_Steps))

    def forget_steps(self) -> None:
        self.unread |= set(self.steps)
        self.steps.clear()


class RunStore:
    """Target of one sweep's writes: the parent run and the trials' child runs. Used by one thread only."""

    together = "log"

    def __init__(self, client: Any, experiment_id: str, parent_id: str) -> None:
        self.client, self.experiment_id, self.parent_id = client, experiment_id, parent_id
        self.runs: dict[str | None, _Run] = {None: _Run(run_id=parent_id)}

    def take(self, writes: list[Write]) -> None:
        if writes[0].action == self.together:
            self._log(writes)
        else:
            (write,) = writes
            getattr(self, f"_{write.action}")(write, **write.values)

    def _start(self, write: Write, name: str, tags: dict[str, str], params: dict[str, str]) -> None:
        """Open the run. An existing one is reused: an earlier try may have created it, and its answer was lost."""
        from mlflow.entities import Param

        run = self.client.get_run(self.parent_id) if write.trial_id is None else self._find(write.trial_id)
        if run is None:
            tags = {PARENT_TAG: self.parent_id, "trial_id": write.trial_id, **tags}
            run = self.client.create_run(self.experiment_id, start_time=write.time_ms, run_name=name, tags=tags)
            self.runs[write.trial_id] = _Run(run_id=run.info.run_id)
        else:
            self.client.update_run(run.info.run_id, status="RUNNING")
        missing = [Param(key, value) for key, value in params.items() if key not in run.data.params]
        for start in range(0, len(missing), PARAM_LIMIT):
            self.client.log_batch(run.info.run_id, params=missing[start : start + PARAM_LIMIT])

    def _log(self, writes: list[Write]) -> None:
        """Log metrics: for trials only steps that are missing, for the sweep the newest summary."""
        from mlflow.entities import Metric

        by_trial: dict[str | None, dict[tuple[str, int], Any]] = defaultdict(dict)
        for write in writes:
            run, fresh = self._run(write.trial_id), by_trial[write.trial_id]
            for name, value, step in write.values["metrics"]:
                steps = self._steps(run, name)
                if write.trial_id is None:
                    fresh[name, step] = Metric(name, value, write.time_ms, step)
                elif step not in steps.times and (name, step) not in fresh:
                    fresh[name, step] = Metric(name, value, steps.time_of(step, write.time_ms), step)
        for trial_id, fresh in by_trial.items():
            run, metrics = self._run(trial_id), list(fresh.values())
            for start in range(0, len(metrics), BATCH_LIMIT):
                batch = metrics[start : start + BATCH_LIMIT]
                self.client.log_batch(run.run_id, metrics=batch)
                for metric in batch:
                    run.steps[metric.key].add(metric)

    def _tag(self, write: Write, key: str, value: str) -> None:
        self.client.set_tag(self._run(write.trial_id).run_id, key, value)

    def _attach(self, write: Write, file: str, folder: str | None) -> None:
        if not Path(file).is_file():
            raise Refused(f"{file} is gone")
        self.client.log_artifact(self._run(write.trial_id).run_id, file, folder)

    def _end(self, write: Write, status: str, tags: dict[str, str]) -> None:
        run = self._run(write.trial_id)
        for key, value in tags.items():
            self.client.set_tag(run.run_id, key, value)
        self.client.set_terminated(run.run_id, status, write.time_ms)
        run.forget_steps()

    def _run(self, trial_id: str | None) -> _Run:
        if trial_id not in self.runs and self._find(trial_id) is None:
            raise Refused("there is no such run")
        return self.runs[trial_id]

    def _find(self, trial_id: str) -> Any | None:
        """The trial's run in the store, or None."""
        query = f"tags.`{PARENT_TAG}` = '{self.parent_id}' and tags.trial_id = '{trial_id}'"
        found = self.client.search_runs([self.experiment_id], query, max_results=1)
        if not found:
            return None
        self.runs[trial_id] = _Run(run_id=found[0].info.run_id, unread=set(found[0].data.metrics))
        return found[0]

    def _steps(self, run: _Run, key: str) -> _Steps:
        if key in run.unread:
            run.steps[key] = _Steps(self.client.get_metric_history(run.run_id, key))
            run.unread.remove(key)
        return run.steps[key]

    def is_refusal(self, error: Exception) -> bool:
        return isinstance(error, Refused) or getattr(error, "error_code", None) in REFUSED

    def is_away(self, error: Exception) -> bool:
        import requests

        cause = error.__cause__ or error.__context__
        if isinstance(cause, requests.RequestException):  # MLflow keeps only its text
            return "too many 500 error responses" not in str(cause)
        if getattr(error, "error_code", None) not in UNCLEAR:
            return True
        try:
            self.client.get_experiment(self.experiment_id)
        except Exception:
            return True
        return False
