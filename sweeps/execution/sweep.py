"""Run a planned sweep from its first missing job to its report; the same call again goes on where it stopped."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from fine_core.data.registry import short_name
from mlflow_setup.runs import SweepRuns
from mlflow_setup.tracking import Tracking, TrackingError
from sweeps.display.numbers import counted, duration
from sweeps.display.progress import ProgressView
from sweeps.execution.agenda import Agenda
from sweeps.execution.cluster import connect_cluster, is_joined, wait_for_capacity
from sweeps.execution.errors import StoppedSweep
from sweeps.execution.recorder import Recorder
from sweeps.execution.runner import RunnerSpec, trials_that_fit
from sweeps.execution.tune_stage import FixedTasks, TaskSource, run_stage
from sweeps.planning.plan import Found, find_jobs
from trainables.failures import Failure, FailureKind
from trainables.specs.base import JobSpec
from trainables.specs.tasks import Task
from trainables.storage.record import Record
from trainables.storage.store import Store

MAX_NAMED = 5  # unreadable images
SCORED_STAGES = frozenset({"base", "transfer"})  # stages whose overhead is said


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where a sweep keeps its results, tells of them, and runs."""

    name: str
    params: dict[str, Any]
    store: Store
    tracking: Tracking
    runner: RunnerSpec
    data_folder: Path
    console: Console


@dataclass(kw_only=True)
class Outcome:
    """What a sweep knows when its last stage is over."""

    failures: dict[str, Failure] = field(default_factory=dict)  # by the id of the task
    timings: dict[str, float] = field(default_factory=dict)


Report = Callable[[Agenda, Surroundings, Recorder, Outcome], int]


class Sweep:
    """One sweep in progress: listens to every task, and passes it on to the display and to MLflow."""

    def __init__(self, agenda: Agenda, surroundings: Surroundings, report: Report) -> None:
        self.agenda, self.at, self.report = agenda, surroundings, report
        self.plan, self.store, self.console = agenda.plan, surroundings.store, surroundings.console
        self.outcome = Outcome()
        self.said_unreadable: set[str] = set()

    def run(self) -> int:
        """Compute what is missing, then report. Returns the exit code: 0 all points done, 1 some failed."""
        self._say_old_records()
        missing = self._missing()
        name = f"{self.at.name}-{self.plan.sweep_id}"
        try:
            runs = SweepRuns(self.at.tracking, self.plan.sweep_id, name, self.at.params)
        except TrackingError as error:
            raise StoppedSweep(str(error)) from error
        self.recorder = Recorder(runs, self.plan.names, self.agenda.label, self.store)
        try:
            if not self.agenda.is_done(missing):
                self._compute(missing)
            for result in self.agenda.results():
                self.recorder.complete(result)
            self._clear_up()
            return self.report(self.agenda, self.at, self.recorder, self.outcome)
        except KeyboardInterrupt:
            runs.close("KILLED")
            raise
        except BaseException:
            runs.close("FAILED")
            raise

    def _say_old_records(self) -> None:
        counts = self.store.count_old_records(frozenset(job.id for job in self.plan.jobs))
        if counts:
            named = ", ".join(f"{number} {kind}" for kind, number in counts.items())
            text = f"{counted(sum(counts.values()), 'record')} of an older version are not used ({named})"
            self.console.print(text, style="yellow", highlight=False)

    def _clear_up(self) -> None:
        """Delete checkpoints that a sweep which died has left of jobs that are finished."""
        finished = [job for job in self.plan.jobs if self.store.read_record(job) is not None]
        for path, _ in self.store.checkpoint_folders(finished):
            self.store.delete(path)

    def _missing(self) -> tuple[Task, ...]:
        """Tasks with something to compute: also again, where it was made from other bytes, or is damaged and needed."""
        while True:
            found = find_jobs(self.plan, self.store)
            missing = tuple(task for task in self.plan.tasks if found.missing(task))
            needed = {need.id: need for need in self.agenda.needs(missing)}
            finished = [job for job in self.plan.jobs if job.id in found.finished]
            unbound = [job for job in finished if not self.store.is_bound(job)]
            damaged = [job for job in finished if job.id in needed and job not in unbound and not self.store.is_intact(job)]
            for job in unbound:
                self._make_again(f"{self.agenda.label(job)} was made from other bytes than those in the store", job)
            for job in damaged:
                self._make_again(f"{self.agenda.label(job)} is damaged in the store", job)
            if not unbound and not damaged:
                return missing

    def _is_up_to_date(self, job: JobSpec) -> bool:
        return self.store.read_record(job) is None or self.store.is_bound(job)

    def _make_again(self, why: str, job: JobSpec) -> None:
        self.console.print(f"{why}; it is made again", style="yellow")
        self.store.discard(job)

    def _compute(self, missing: Sequence[Task]) -> None:
        found = find_jobs(self.plan, self.store)
        total, num_missing = len(self.plan.jobs), len(self.plan.jobs) - len(found.finished)
        what_for = self.agenda.what_for(num_missing)
        self.console.print(f"{total - num_missing} of {total} jobs are in the store already; starting Ray{what_for}")
        started = time.monotonic()
        connect_cluster()
        # `ray job stop` ends the sweep as Ctrl-C does. Set after Ray, which has a handler of its own.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        self.outcome.timings["ray_start"] = time.monotonic() - started
        try:
            self._wait_for_capacity(missing)
            with ProgressView(self.console, self.plan, found, lambda task: self.agenda.label(task.job)) as self.view:
                self._run_stages(missing, found)
        finally:
            ray.shutdown()

    def _wait_for_capacity(self, missing: Sequence[Task]) -> None:
        demands = {str(demand): demand for task in missing if (demand := self.at.runner.demand_of(task.job))}
        for bundle, number in demands.values():
            wait_for_capacity(bundle, number, lambda text: self.console.print(text, highlight=False))

    def _run_stages(self, missing: Sequence[Task], found: Found) -> None:
        to_do = {task.id for task in missing}
        for stage, tasks in self.plan.stages.items():
            # What was made again in an earlier stage may have other bytes than before.
            changed = {task.id for task in tasks if not all(self._is_up_to_date(job) for job in task.jobs)}
            if runnable := self._runnable([task for task in tasks if task.id in to_do | changed]):
                self._run_stage(stage, FixedTasks(runnable), counted(len(runnable), "job"), len(runnable))
                self._show_overhead(stage, runnable, found)
        last = self.agenda.last_stage(self.outcome.failures)
        if last is not None:
            self.view.costs |= last.costs
            self._run_stage(last.name, last.source, last.what, len(last.costs))

    def _run_stage(self, stage: str, source: TaskSource, what: str, total: int) -> None:
        started = time.monotonic()
        self.view.begin_stage(stage, what, total)
        run_stage(f"{self.plan.sweep_id}-{stage}", source, self.store, self.at.runner, self)
        self.outcome.timings[stage] = time.monotonic() - started

    def _runnable(self, tasks: Sequence[Task]) -> list[Task]:
        """Tasks whose artifacts are there; the others fail with the artifact's name and its own failure."""
        runnable = []
        for task in tasks:
            lacking = [need for need in task.needs if self.store.read_record(need) is None]
            if not lacking:
                runnable.append(task)
                continue
            cause = self.outcome.failures.get(lacking[0].id)
            self.started(task)
            self.failed(task, lost_artifact(self.agenda.label(lacking[0]), cause))
        return runnable

    def _show_overhead(self, stage: str, tasks: Sequence[Task], found: Found) -> None:
        records = [record for task in tasks for job in found.missing(task) if (record := self.store.read_record(job))]
        if not records:
            return
        seconds = self.outcome.timings[stage]
        line = f"stage {stage}: {duration(seconds)}"
        if stage in SCORED_STAGES and not is_joined():  # a cluster that grows is not full all the time
            slots = min(trials_that_fit(self.at.runner), len(tasks))
            slots = min(slots, self.at.runner.max_concurrent or slots)
            work_s = sum(record.metrics.get(name, 0.0) for record in records for name in ("train_s", "eval_s"))
            outside_s = (seconds * slots - work_s) / len(tasks)
            line += f"; {outside_s:.1f} s per trial outside training and evaluation, on {slots} slots"
            self.outcome.timings[f"{stage}_outside_per_trial"] = outside_s
        self.console.print(line, highlight=False)

    # The listener's side: called in this process, by the stage's Tune callbacks.

    def started(self, task: Task) -> None:
        self.view.started(task)
        if (model := self.agenda.model_of(task)) is not None:
            self.recorder.start(model)

    def reported(self, task: Task, metrics: dict[str, Any]) -> None:
        self.view.reported(task, metrics)
        if (model := self.agenda.model_of(task)) is not None:
            self.recorder.progress(model.id, metrics["history"])

    def finished(self, task: Task) -> None:
        records = [self.store.record(job) for job in task.jobs]
        self._say_unreadable(task, records[0])
        heard, model = self.agenda.finished(task), self.agenda.model_of(task)
        rung = getattr(task.job, "rung", None)
        fids = [record.metrics["fid"] for record in records if record.kind == "score"]
        job_s = sum(record.metrics["job_s"] for record in records)
        fid = fids[0] if fids and model is not None else None  # a score of what is no point competes with none
        self.view.done_share |= dict.fromkeys(heard.ended, 1.0)
        self.view.finished(task, fid, job_s, note=heard.note, proxy=rung is not None, advance=heard.advance)
        if rung is not None:
            self.recorder.rung(task.job, records[0])
            if heard.stopped:
                self.recorder.stop(task.job.trained.id, heard.stopped)
        elif (result := self.agenda.result_of(task)) is not None:
            self.recorder.finish(result)

    def failed(self, task: Task, failure: Failure) -> None:
        self.outcome.failures[task.id] = failure
        heard = self.agenda.failed(task, failure)
        self.view.done_share |= dict.fromkeys(heard.ended, 1.0)
        self.view.failed(task, failure, advance=heard.advance)
        if (model := self.agenda.model_of(task)) is not None:
            self.recorder.fail(model.id, failure)

    def _say_unreadable(self, task: Task, record: Record) -> None:
        """Once for each dataset."""
        names, dataset = record.unreadable_images, getattr(task.job, "dataset", "")
        if names and dataset not in self.said_unreadable:
            self.said_unreadable.add(dataset)
            what = f"{counted(len(names), 'image')} of {short_name(dataset)} cannot be read"
            listed = ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
            self.console.print(f"  {what}; the next of the class takes its place: {listed}", style="yellow", highlight=False)


def lost_artifact(label: str, cause: Failure | None) -> Failure:
    """The failure of what cannot be made because something that it needs is not there."""
    why = "see above" if cause is None else str(cause.reason)
    log = "" if cause is None else cause.log
    return Failure(kind=FailureKind.LOST_ARTIFACT, reason=f"needs the {label}, which failed: {why}", log=log)
