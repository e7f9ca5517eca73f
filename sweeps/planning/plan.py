"""From a grid to a plan: tasks by stage, and points. Computes nothing."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sweeps.planning.costs import task_core_s
from sweeps.planning.grid import GridSpec
from sweeps.planning.names import TUNED, MethodNames
from sweeps.planning.points import DecompositionScores, ForgettingCurve, PlannedPoint
from sweeps.planning.settings import tuned_for_size
from trainables.specs.base import JobSpec
from trainables.specs.models import PointSpec
from trainables.specs.scores import ScoreSpec
from trainables.specs.tasks import Task, jobs_of
from trainables.storage.store import Store

STAGES = ("source", "decompose", "learngene", "base", "bank", "transfer", "curve")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The tasks of a sweep by stage; each stage needs only what those before it make.

    `source`: extractors, and learngenes from scratch; `decompose`: a given model decomposed; `learngene`: the same trained on;
    `base`: base models; `bank`: what they remember; `transfer`: base models taken to the target; `curve`: scores of transfers
    whose last steps their base takes. Base models and transfers are scored where they are trained.
    """

    source: tuple[Task, ...] = ()
    decompose: tuple[Task, ...] = ()
    learngene: tuple[Task, ...] = ()
    base: tuple[Task, ...] = ()
    bank: tuple[Task, ...] = ()
    transfer: tuple[Task, ...] = ()
    curve: tuple[Task, ...] = ()
    points: tuple[PlannedPoint, ...] = ()
    curves: tuple[ForgettingCurve, ...] = ()
    decompositions: tuple[DecompositionScores, ...] = ()
    tuned: frozenset[str] = frozenset()  # ids of the points whose settings a search has found

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
    def stages(self) -> dict[str, tuple[Task, ...]]:
        """The stages that have tasks, in order."""
        stages = {name: getattr(self, name) for name in STAGES}
        return {name: tasks for name, tasks in stages.items() if tasks}

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of all stages, in the order of the stages."""
        return tuple(task for tasks in self.stages.values() for task in tasks)

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
    bases = [grid.base_model(*point, seed) for point in points for seed in grid.seeds]
    transfers = [] if grid.transfer is None else [transfer for base in bases for transfer in grid.transfer.transfers(base)]
    return plan_points(grid, [*bases, *transfers], tuned=tuned_transfers(grid))


def tuned_transfers(grid: GridSpec) -> list[PointSpec]:
    """What a search has found, at every size and seed of the grid."""
    if grid.transfer is None:
        return []
    return [
        grid.transferred(found.method, found.settings, initialization=name, depth=depth, width=width, seed=seed)
        for name in grid.transfer.initializations
        for size, (depth, width) in grid.sizes_of(name).items()
        for found in tuned_for_size(grid.transfer.tuned, name, size)
        for seed in grid.seeds
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
    plan = plan_tasks([point.task for point in points], before=[p.forgetting_before for p in points if p.forgetting_before])
    curve = _longest_first(Task(job=score) for c in curves for score in c.scores if score.replaced_steps)
    extractors = {e.id: Task(job=e) for task in curve for e in task.needs if e.kind == "extractor"}
    source = {task.id: task for task in (*plan.source, *extractors.values())}
    ordered = sorted(points, key=lambda p: (p.model.kind != "base", -task_core_s(p.task)))
    plan = replace(
        plan, source=tuple(source.values()), curve=curve, points=tuple(ordered), curves=tuple(curves), tuned=frozenset(new)
    )
    return _with_decomposition(plan, grid)


def plan_tasks(tasks: Iterable[Task], *, before: Iterable[ScoreSpec] = ()) -> Plan:
    """The plan of tasks about base models and transfers, and of all that they need, each job once.

    `before`: scores of base models that their transfers are compared with, taken where the base model is trained.
    """
    by_id = {task.id: task for task in tasks}
    for need in [need for task in by_id.values() for need in task.job.needs]:
        by_id.setdefault(need.id, Task(job=need))
    for bank in [task.job for task in by_id.values() if task.job.kind == "bank"]:
        for need in bank.needs:
            by_id.setdefault(need.id, Task(job=need))
    for score in before:
        task = by_id[score.trained.id]
        scores = {s.id: s for s in (*task.scores, score)}
        by_id[task.id] = replace(task, scores=tuple(scores.values()))
    for need in [need for task in by_id.values() for need in task.needs]:
        by_id.setdefault(need.id, Task(job=need))
    for need in [need for task in by_id.values() for need in task.needs]:  # of what was just added: a learngene's
        by_id.setdefault(need.id, Task(job=need))
    found = tuple(by_id.values())
    learngenes = [task for task in found if task.job.kind == "learngene"]
    decomposed = [task for task in learngenes if any(need.kind == "decomposition" for need in task.needs)]
    return Plan(
        source=_longest_first([*_of_kind(found, "extractor"), *(task for task in learngenes if task not in decomposed)]),
        decompose=_of_kind(found, "decomposition"),
        learngene=tuple(decomposed),
        base=_of_kind(found, "base"),
        bank=_of_kind(found, "bank"),
        transfer=_of_kind(found, "transfer"),
    )


def _with_decomposition(plan: Plan, grid: GridSpec) -> Plan:
    """Scores of the given model on its way to a learngene, where the plan has one."""
    if not plan.learngene:
        return plan
    scores = grid.decomposition_scores()
    decompose = [replace(task, scores=(scores.decomposed,)) for task in plan.decompose] + [Task(job=scores.source)]
    learngene = [replace(task, scores=(scores.trained,)) for task in plan.learngene]
    source = {task.id: task for task in (*plan.source, Task(job=scores.source.extractor))}
    return replace(
        plan,
        source=tuple(source.values()),
        decompose=tuple(decompose),
        learngene=tuple(learngene),
        decompositions=(scores,),
    )


def _of_kind(tasks: Iterable[Task], kind: str) -> tuple[Task, ...]:
    return _longest_first(task for task in tasks if task.job.kind == kind)


def _longest_first(tasks: Iterable[Task]) -> tuple[Task, ...]:
    """Each task once, the longest first."""
    return tuple(sorted({task.id: task for task in tasks}.values(), key=lambda task: -task_core_s(task)))
