"""Run a planned sweep from its first missing job to its report; the same call again goes on where it stopped."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fine_core.data.registry import short_name
from mlflow_setup.runs import SweepRuns
from mlflow_setup.tracking import Tracking, TrackingError
from sweeps.display.numbers import counted, duration
from sweeps.display.progress import ProgressView
from sweeps.execution.agenda import Agenda
from sweeps.execution.claims import ClaimedTasks
from sweeps.execution.cluster import connect_cluster, is_joined, leave_cluster, wait_for_capacity
from sweeps.execution.errors import StoppedSweep
from sweeps.execution.graph import TaskGraph
from sweeps.execution.recorder import Recorder
from sweeps.execution.runner import RunnerSpec, cluster_slots
from sweeps.execution.tune_run import run_tasks
from sweeps.planning.plan import find_jobs
from trainables.failures import Failure, FailureKind
from trainables.jobs.registry import JOB_KINDS, kind_of
from trainables.specs.base import JobSpec
from trainables.specs.tasks import Task
from trainables.storage.leases import Leases, Owner
from trainables.storage.record import Record
from trainables.storage.store import Store

MAX_NAMED = 5  # unreadable images


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where a sweep keeps its results, tells of them, and runs."""

    name: str
    params: dict[str, Any]
    store: Store
    tracking: Tracking
    runner: RunnerSpec
    leases: Leases
    databases: Path
    data_folder: Path
    console: Console


@dataclass(kw_only=True)
class Outcome:
    """What a sweep knows when its last task is over."""

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
        self.work_s: dict[str, float] = {}  # by job: seconds of all its workers

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
        counts = self.store.count_old_records(JOB_KINDS, frozenset(job.id for job in self.plan.jobs))
        if counts:
            named = ", ".join(f"{number} {kind}" for kind, number in counts.items())
            text = f"{counted(sum(counts.values()), 'record')} of an older version are not used ({named})"
            self.console.print(text, style="yellow")

    def _clear_up(self) -> None:
        """Delete checkpoints that a sweep which died has left of jobs that are finished."""
        finished = [job for job in self.plan.jobs if self.store.read_record(job) is not None]
        for path, _ in self.store.checkpoint_folders(finished):
            self.store.delete(path)

    def _missing(self) -> tuple[Task, ...]:
        """Tasks to compute: unfinished ones, and ones with a job that was made from other bytes, or is damaged and needed."""
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

    def _make_again(self, why: str, job: JobSpec) -> None:
        self.console.print(f"{why}; it is made again", style="yellow")
        self.store.discard(job)

    def _compute(self, missing: Sequence[Task]) -> None:
        self.found = found = find_jobs(self.plan, self.store)
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
                self._run(missing)
        except KeyboardInterrupt:
            self.recorder.runs.close("KILLED")  # first: `ray job stop` gives a sweep three seconds
            raise
        finally:
            leave_cluster()

    def _wait_for_capacity(self, missing: Sequence[Task]) -> None:
        demands = {str(demand): demand for task in missing if (demand := self.at.runner.demand_of(task.job))}
        for bundle, number in demands.values():
            wait_for_capacity(bundle, number, lambda text: self.console.print(text))

    def _run(self, missing: Sequence[Task]) -> None:
        self.graph = TaskGraph(
            self.plan.tasks,
            missing=frozenset(task.id for task in missing),
            is_current=self._is_finished,
            after_s=self.agenda.after_s(),
        )
        self.view.begin(len(missing), self.agenda.further_costs())
        started = time.monotonic()
        tasks = ClaimedTasks(self.agenda.source(self.graph), self, self.at.leases, self._is_finished)
        run_tasks(self.plan.sweep_id, tasks, self.store, self.at.runner, tasks)
        self.outcome.timings["tasks"] = time.monotonic() - started
        self._show_efficiency()

    def _is_finished(self, task: Task) -> bool:
        return all(self.store.is_finished(job) for job in task.jobs)

    def _lacks(self, task: Task, need: JobSpec) -> None:
        """A task that cannot be made because something that it needs is not there."""
        self.started(task)
        self.failed(task, lost_artifact(self.agenda.label(need), self.outcome.failures.get(need.id)))

    def _show_efficiency(self) -> None:
        """How much of the slots' time was work. (A cluster that grows or is shared is not full all the time.)"""
        if is_joined() or not self.work_s:
            return
        slots = min(cluster_slots(self.at.runner), self.at.runner.max_concurrent or math.inf)
        seconds = self.outcome.timings["tasks"]
        efficiency = sum(self.work_s.values()) / (seconds * slots)
        line = f"{counted(len(self.work_s), 'job')} in {duration(seconds)} on {counted(slots, 'slot')}"
        self.console.print(f"{line}: {efficiency:.0%} of the slots' time was work")
        self.outcome.timings["work"] = sum(self.work_s.values())

    # The listener's side: called in this process, by Tune's callbacks.

    def started(self, task: Task) -> None:
        self.view.started(task)
        if (model := self.agenda.model_of(task)) is not None:
            self.recorder.start(model)

    def reported(self, task: Task, metrics: dict[str, Any]) -> None:
        self.view.reported(task, metrics)
        if (model := self.agenda.model_of(task)) is not None:
            self.recorder.progress(model.id, metrics["history"])

    def finished(self, task: Task, note: str = "") -> None:
        records = [self.store.record(job) for job in task.jobs]
        self.graph.finished(task)
        new = [record for record in records if record.id not in self.found.finished]
        self.work_s |= {record.id: record.metrics["job_s"] * record.metrics["num_workers"] for record in new}
        self._say_unreadable(task, records[0])
        heard, model = self.agenda.finished(task), self.agenda.model_of(task)
        rung = getattr(task.job, "rung", None)
        fids = [r.metrics["fid"] for job, r in zip(task.jobs, records, strict=True) if kind_of(job).is_score]
        job_s = sum(record.metrics["job_s"] for record in records)
        fid = fids[0] if fids and model is not None else None  # a score of what is no point competes with none
        self.view.done_share |= dict.fromkeys(heard.ended, 1.0)
        self.view.finished(task, fid, job_s, note=heard.note + note, proxy=rung is not None, advance=heard.advance)
        if rung is not None:
            self.recorder.rung(task.job, records[0])
            if heard.stopped:
                self.recorder.stop(task.job.trained.id, heard.stopped)
        elif (result := self.agenda.result_of(task)) is not None:
            self.recorder.finish(result)

    def waits_for(self, owner: Owner) -> None:
        self.console.print(f"  waiting for jobs of another sweep: {owner}", style="yellow")

    def finished_elsewhere(self, task: Task) -> None:
        self.found = replace(self.found, finished=self.found.finished | {job.id for job in task.jobs})
        self.started(task)
        self.finished(task, ", by another sweep")

    def failed(self, task: Task, failure: Failure) -> None:
        self.outcome.failures[task.id] = failure
        lost = self.graph.failed(task)
        heard = self.agenda.failed(task, failure)
        self.view.done_share |= dict.fromkeys(heard.ended, 1.0)
        self.view.failed(task, failure, advance=heard.advance)
        if (model := self.agenda.model_of(task)) is not None:
            self.recorder.fail(model.id, failure)
        for other, need in lost:
            self._lacks(other, need.job)

    def _say_unreadable(self, task: Task, record: Record) -> None:
        """Once for each dataset."""
        names, dataset = record.unreadable_images, getattr(task.job, "dataset", "")
        if names and dataset not in self.said_unreadable:
            self.said_unreadable.add(dataset)
            what = f"{counted(len(names), 'image')} of {short_name(dataset)} cannot be read"
            listed = ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
            self.console.print(f"  {what}; the next of the class takes its place: {listed}", style="yellow")


def lost_artifact(label: str, cause: Failure | None) -> Failure:
    """The failure of what cannot be made because something that it needs is not there."""
    why = "see above" if cause is None else str(cause.reason)
    log = "" if cause is None else cause.log
    return Failure(kind=FailureKind.LOST_ARTIFACT, reason=f"needs the {label}, which failed: {why}", log=log)
