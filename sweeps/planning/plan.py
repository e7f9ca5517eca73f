"""From a grid to a plan: tasks and points. Computes nothing."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sweeps.planning.costs import task_core_s
from sweeps.planning.grid import GridSpec
from sweeps.planning.names import TUNED, MethodNames
from sweeps.planning.points import DecompositionScores, ForgettingCurve, PlannedPoint
from sweeps.planning.settings import tuned_for_size
from trainables.jobs.registry import kind_of
from trainables.specs.base import JobSpec, check
from trainables.specs.models import PointSpec
from trainables.specs.scores import ScoreSpec
from trainables.specs.tasks import Task, jobs_of
from trainables.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The tasks of a sweep, and what they are for. Base models and transfers are scored where they are trained."""

    tasks: tuple[Task, ...] = ()
    points: tuple[PlannedPoint, ...] = ()
    curves: tuple[ForgettingCurve, ...] = ()
    decompositions: tuple[DecompositionScores, ...] = ()
    tuned: frozenset[str] = frozenset()  # ids of the points whose settings a search has found
    left_out: tuple[str, ...] = ()  # what is asked for and cannot be made, each with its reason

    @property
    def names(self) -> MethodNames:
        """What its points are called."""
        return MethodNames([point.model for point in self.points], self.tuned)

    @property
    def identity(self) -> list[str]:
        """What makes it this sweep: its points and their scores, in whatever order they were asked for."""
        parts = [part for point in self.points for part in (point.model, *point.all_scores)]
        return sorted({part.id for part in (*parts, *(score for curve in self.curves for score in curve.scores))})

    @property
    def sweep_id(self) -> str:
        """A hash: the same grid is the same sweep."""
        return hashlib.sha256(" ".join(self.identity).encode()).hexdigest()[:10]

    @property
    def claims(self) -> tuple[str, ...]:
        """What one process works on at a time: the sweep, which has one parent run."""
        return (f"sweep-{self.sweep_id}",)

    @property
    def stages(self) -> dict[str, tuple[Task, ...]]:
        """The tasks by the stage that they belong to, for people: each stage needs only what those before it make."""
        stages: dict[str, list[Task]] = {}
        for task in self.tasks:
            stages.setdefault(kind_of(task.job).stage(task.job), []).append(task)
        return {name: tuple(tasks) for name, tasks in stages.items()}

    @property
    def jobs(self) -> tuple[JobSpec, ...]:
        """The jobs of all tasks."""
        return jobs_of(self.tasks)

    @property
    def labels(self) -> dict[str, str]:
        """A label for each task's id. Base models of one size that differ in their settings say so, and tuned points."""
        count = Counter(task.label for task in self.tasks)
        labels = {task.id: task.label + (_details(task.job) if count[task.label] > 1 else "") for task in self.tasks}
        return {id: f"{label}, {TUNED}" if id in self.tuned else label for id, label in labels.items()}


def _details(job: JobSpec) -> str:
    """What tells the base model that a job is about from others of its initialization and size."""
    base = getattr(job, "base", None)
    details = {} if base is None else base.initialization.details
    return "".join(f", {value} {name.replace('_', ' ')}" for name, value in details.items())


@dataclass(frozen=True, kw_only=True)
class Found:
    """The ids of a plan's jobs that a store has finished."""

    finished: frozenset[str]

    def missing(self, task: Task) -> tuple[JobSpec, ...]:
        return tuple(job for job in task.jobs if job.id not in self.finished)

    def state(self, task: Task) -> str:
        missing = self.missing(task)
        if not missing:
            return "done"
        return "to do" if task.job in missing else "to score"


def find_jobs(plan: Plan, store: Store) -> Found:
    """Looks at records alone, not at the files."""
    return Found(finished=frozenset(job.id for job in plan.jobs if store.read_record(job) is not None))


def plan_grid(grid: GridSpec) -> Plan:
    """Expand a grid. Largest models come first, so that no long trial is left over at the end. Raises ValueError."""
    points = [(method, *size) for method in grid.methods for size in grid.sizes_of(method).values()]
    check(bool(points), f"no size can be made: {'; '.join(grid.refusals)}")
    bases = [base for point in points for base in grid.base_models(*point)]
    transfers = [] if grid.transfer is None else [transfer for base in bases for transfer in grid.transfer.transfers(base)]
    return plan_points(grid, [*bases, *transfers], tuned=tuned_transfers(grid))


def tuned_transfers(grid: GridSpec) -> list[PointSpec]:
    """What a search has found, at every size and seed of the grid."""
    if grid.transfer is None:
        return []
    return [
        grid.transferred(found.method, found.settings, start=name, depth=depth, width=width, seed=seed, source_seed=source)
        for name in grid.transfer.initializations
        for size, (depth, width) in grid.sizes_of(name).items()
        for found in tuned_for_size(grid.transfer.tuned, name, size)
        for seed, source in grid.repeats
    ]


def plan_points(
    grid: GridSpec,
    models: Iterable[PointSpec],
    *,
    tuned: Sequence[PointSpec] = (),
    curves: Sequence[ForgettingCurve] = (),
) -> Plan:
    """The plan of these models with the scores that the grid asks for, and of all that they need.

    `tuned`: further transfers, whose settings a search has found. New points among them, and new base models, are labelled
    'tuned'.
    """
    models = list(models)
    new = {job.id for t in tuned for job in (t.base, t)} - {job.id for job in models}
    found = {model.id: model for model in (*models, *(t.base for t in tuned), *tuned)}
    points = tuple(grid.point(model) for model in found.values())
    for extractor in {point.score.extractor.id: point.score.extractor for point in points}.values():
        extractor.check_data()
    curve = [Task(job=score) for c in curves for score in c.scores if score.replaced_steps]
    before = [point.forgetting_before for point in points if point.forgetting_before is not None]
    tasks = plan_tasks([*(point.task for point in points), *curve], scores=before)
    decompositions: tuple[DecompositionScores, ...] = ()
    if grid.source is not None and any(task.id == grid.learngene.id for task in tasks):
        decompositions = (grid.decomposition_scores(),)
        tasks = plan_tasks(tasks, scores=[score for scores in decompositions for score in scores.all])
    return Plan(
        tasks=tasks,
        points=tuple(sorted(points, key=lambda p: (p.model.base is not p.model, -task_core_s(p.task)))),
        curves=tuple(curves),
        decompositions=decompositions,
        tuned=frozenset(new),
        left_out=grid.refusals,
    )


def plan_tasks(tasks: Iterable[Task], *, scores: Iterable[ScoreSpec] = ()) -> tuple[Task, ...]:
    """These tasks and all that they need, each once, in the order of the stages and the longest first.

    `scores`: further ones, each taken where its model is made, or on its own if no task makes it.
    """
    found = _with_needs(tasks)
    for score in scores:
        task = found.get(score.trained.id)
        if task is None:
            found[score.id] = Task(job=score)
        elif score not in task.scores:
            found[task.id] = replace(task, scores=(*task.scores, score))
    return _in_order(_with_needs(found.values()))


def _with_needs(tasks: Iterable[Task]) -> dict[str, Task]:
    """Tasks by id, and one for everything that they need, but for what the user gives."""
    found: dict[str, Task] = {}
    queue = list(tasks)
    for task in queue:  # grows while it is read
        if task.id not in found:
            found[task.id] = task
            queue += [Task(job=need) for need in task.needs if not need.is_given]
    return found


def _in_order(found: Mapping[str, Task]) -> tuple[Task, ...]:
    """Stages by the longest chain of needs that any of their tasks ends; within a stage the longest task first."""
    made_by = {job.id: task.id for task in found.values() for job in task.jobs}
    levels: dict[str, int] = {}

    def level(task: Task) -> int:
        if task.id not in levels:
            needed = {made_by[need.id] for need in task.needs if need.id in made_by} - {task.id}
            levels[task.id] = 1 + max((level(found[id]) for id in needed), default=0)
        return levels[task.id]

    stages = {id: kind_of(task.job).stage(task.job) for id, task in found.items()}
    last: dict[str, int] = {}
    for id, task in found.items():
        last[stages[id]] = max(last.get(stages[id], 0), level(task))
    return tuple(sorted(found.values(), key=lambda t: (last[stages[t.id]], stages[t.id], -task_core_s(t))))
