"""What a sweep works through: the tasks of a grid, or these and a source that decides as it goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sweeps.execution.graph import TaskGraph
from sweeps.execution.tune_run import TaskSource
from sweeps.planning.plan import Plan
from sweeps.results.points import PointResult, Results, point_result
from trainables.failures import Failure
from trainables.specs.base import JobSpec
from trainables.specs.models import PointSpec
from trainables.specs.tasks import Task
from trainables.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What a task's end changes. `note`: text for people. `advance`: steps of progress. `stopped`: why the task was stopped.

    `ended`: trials that are over, by their names in the agenda's further costs.
    """

    note: str = ""
    advance: int = 1
    ended: tuple[str, ...] = ()
    stopped: str | None = None


class Agenda(Protocol):
    """One kind of sweep."""

    plan: Plan

    def is_done(self, missing: Sequence[Task]) -> bool: ...

    def needs(self, missing: Sequence[Task]) -> Iterable[JobSpec]:
        """Jobs whose stored files must be intact, because the missing tasks, or later tasks, read these files."""

    def what_for(self, num_missing: int) -> str:
        """Why Ray is started, for people."""

    def label(self, job: JobSpec) -> str: ...

    def after_s(self) -> Mapping[str, float]:
        """Task id -> core seconds of unplanned work that waits for this planned task."""

    def further_costs(self) -> Mapping[str, float]:
        """Seconds on a core of each trial that is not planned as a task, by a name of its own."""

    def source(self, graph: TaskGraph) -> TaskSource:
        """Where all tasks come from: the planned ones from the graph, and others once what they need is finished."""

    def model_of(self, task: Task) -> PointSpec | None:
        """The point whose run a task belongs to, None if it has none."""

    def result_of(self, task: Task) -> PointResult | None:
        """The result that a finished task completes, None if it completes none."""

    def finished(self, task: Task) -> Heard: ...

    def failed(self, task: Task, failure: Failure) -> Heard: ...

    def results(self) -> Results: ...


class GridAgenda:
    """The points of a grid."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store, self.labels = plan, store, plan.labels
        self.points = {point.id: point for point in plan.points}

    def is_done(self, missing: Sequence[Task]) -> bool:
        return not missing

    def needs(self, missing: Sequence[Task]) -> Iterable[JobSpec]:
        return (need for task in missing for need in task.needs)

    def what_for(self, num_missing: int) -> str:
        return f" for {num_missing}"

    def label(self, job: JobSpec) -> str:
        return self.labels.get(job.id, job.label)

    def after_s(self) -> Mapping[str, float]:
        return {}

    def further_costs(self) -> Mapping[str, float]:
        return {}

    def source(self, graph: TaskGraph) -> TaskSource:
        return graph

    def model_of(self, task: Task) -> PointSpec | None:
        return self.points[task.id].model if task.id in self.points else None

    def result_of(self, task: Task) -> PointResult | None:
        return point_result(self.points[task.id], self.store) if task.id in self.points else None

    def finished(self, task: Task) -> Heard:
        return Heard()

    def failed(self, task: Task, failure: Failure) -> Heard:
        return Heard()

    def results(self) -> Results:
        return [result for point in self.plan.points if (result := point_result(point, self.store))]
