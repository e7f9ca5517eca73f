"""From options to a search: its studies, and the jobs that must be done before them. Computes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from fine_core.evaluation.protocol import EvaluationSpec
from sweeps.planning.costs import result_bytes, task_core_s, total_macs
from sweeps.planning.grid import GridSpec
from sweeps.planning.plan import Plan, plan_tasks
from sweeps.planning.settings import TransferSettings
from sweeps.search.objectives import OBJECTIVES, metrics_among
from sweeps.search.space import AT_SIZE, SearchSpace, build_space, options_to_search
from sweeps.search.study import SAMPLERS, HalvingSpec, StudySpec, rungs_of, study_digest
from trainables.initializations import INITIALIZATIONS, Initialization, initialization
from trainables.jobs.shapes import served_parameters
from trainables.methods import transfer_method
from trainables.specs.base import check
from trainables.specs.options import Choice, Options, Point
from trainables.specs.tasks import Task
from trainables.specs.transfers import TransferSpec


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """What a search is asked for. `study`: name of the studies, or None for one that tells them apart from all others."""

    method: str
    sizes: tuple[str, ...]
    objectives: tuple[str, ...]
    num_trials: int
    sampler: str
    study_seed: int
    searched: tuple[str, ...] | None
    known_points: tuple[str, ...]
    limits: dict[str, int]
    early_stopping: bool
    reduction_factor: int
    proxy_samples: int
    study: str | None

    def __post_init__(self) -> None:
        transfer_method(self.method)
        for name in self.objectives:
            check(name in OBJECTIVES, f"unknown objective {name!r}; choose from {', '.join(OBJECTIVES)}")
        check("fid" in self.objectives, f"objectives are {', '.join(self.objectives)}; one of them must be fid")
        check(self.num_trials >= 1, f"trials is {self.num_trials}; it must be at least 1")
        check(self.sampler in SAMPLERS, f"unknown sampler {self.sampler!r}; choose one of {', '.join(SAMPLERS)}")
        check(self.reduction_factor >= 2, f"reduction_factor is {self.reduction_factor}; it must be at least 2")
        check(self.study_seed >= 0, f"study_seed is {self.study_seed}; it must be 0 or more")
        for name, limit in self.limits.items():
            check(limit > 0, f"the limit of {name} is {limit}; it must be positive")

    @property
    def is_joint(self) -> bool:
        """Whether one study searches the size too. If `serve_bytes` is an objective, one size could hardly lower it."""
        return "serve_bytes" in self.objectives and len(self.sizes) > 1

    @property
    def artifacts(self) -> bool:
        """Whether options that need an artifact for each value are searched: if one is named, or if bytes are an objective."""
        known = {name for start in INITIALIZATIONS.values() for name in _of_artifacts(start)}
        return not known.isdisjoint(self.searched or ()) or "initialize_bytes" in self.objectives


@dataclass(frozen=True, kw_only=True)
class SearchPlan(Plan):
    """What the studies need, and the studies. Its base models are needs of the search, not points."""

    studies: tuple[StudySpec, ...]
    excluded: tuple[str, ...]  # sizes at which no point keeps to the limits

    @property
    def identity(self) -> list[str]:
        """Its studies: the same search is the same sweep, also with more trials."""
        return [study.name for study in self.studies]

    @property
    def claims(self) -> tuple[str, ...]:
        """Each study too: other searches may have some of them. In one order, so that no two searches wait for each other."""
        names = sorted(hashlib.sha256(study.name.encode()).hexdigest()[:16] for study in self.studies)
        return (*super().claims, *(f"study-{name}" for name in names))

    @property
    def num_trials(self) -> int:
        return sum(study.num_trials for study in self.studies)


def _of_artifacts(start: Initialization) -> list[str]:
    kind = start.options
    return [] if kind is None else [item.name for item in kind.fields() if item.metadata["changes_artifact"]]


def trial_macs(study: StudySpec) -> float:
    """Multiply-accumulates of a full trial of a study, at its most expensive size."""
    return max(total_macs(study.point(study.default_transfer(size)).task.jobs) for size in study.sizes)


def trial_core_s(study: StudySpec) -> float:
    """Seconds of one CPU core for a full trial of a study, at its most expensive size."""
    return max(task_core_s(study.point(study.default_transfer(size)).task) for size in study.sizes)


def plan_search(grid: GridSpec, search: SearchSpec) -> SearchPlan:
    """The studies on base models of every initialization. Raises ValueError for a search that cannot be made."""
    check(grid.transfer.steps > 0, f"{search.method} has no training steps to search over; see --transfer-steps")
    check(len(grid.seeds) == 1, "a search trains with one seed; compare what it finds over seeds with size_grid.py")
    check(len(grid.source_seeds) == 1, "a search pre-trains with one source seed; name one with --source-seeds")
    grid = replace(grid, metrics=(*grid.metrics, *metrics_among(search.objectives)))
    found = [_plan_of(_with_base_models_of(grid, name), search) for name in grid.transfer.initializations]
    studies = tuple(study for studies, _ in found for study in studies)
    names = [study.name for study in studies]
    check(len(set(names)) == len(names), "studies of several initializations need names of their own; leave --study out")
    points = [study.point(study.transfer(point)) for study in studies for point in points_of_all_bases(study)]
    needed_before = [point.forgetting_before for point in points if point.forgetting_before is not None]
    needs = [Task(job=need) for point in points for need in point.task.needs]
    excluded = tuple(dict.fromkeys(name for _, names in found for name in names))
    return SearchPlan(tasks=plan_tasks(needs, scores=needed_before), studies=studies, excluded=excluded)


def _with_base_models_of(grid: GridSpec, name: str) -> GridSpec:
    assert grid.transfer is not None
    return replace(grid, transfer=replace(grid.transfer, initializations=(name,)))


def _plan_of(grid: GridSpec, search: SearchSpec) -> tuple[tuple[StudySpec, ...], tuple[str, ...]]:
    """The studies on base models of one initialization, and the sizes at which no point keeps to the limits."""
    sizes = _chosen_sizes(grid, search.sizes)
    search = replace(search, sizes=tuple(sizes))
    values = {name: _allowed_values(grid, search, sizes[name]) for name in sizes}
    allowed = {name: values[name] for name in sizes if values[name] is not None}
    limits = ", ".join(f"{name} <= {limit:,}" for name, limit in search.limits.items())
    check(bool(allowed), f"no point keeps to {limits}; {_smallest(grid, search, sizes)}")
    groups = [allowed] if search.is_joint and len(allowed) > 1 else [{name: allowed[name]} for name in allowed]
    studies = tuple(_study(grid, search, {name: sizes[name] for name in group}, group) for group in groups)
    _check_objectives(search, studies)
    return studies, tuple(name for name in sizes if name not in allowed)


def _chosen_sizes(grid: GridSpec, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    sizes = grid.sizes_of(grid.transfer.initializations[0])
    if not names:
        return dict([max(sizes.items(), key=lambda item: item[1])])
    if tuple(names) == ("all",):
        return sizes
    for name in names:
        check(name in sizes, f"the grid has no size {name!r}; choose from {', '.join(sizes)}, or all")
    return {name: sizes[name] for name in names}


def _default_settings(grid: GridSpec, search: SearchSpec) -> TransferSettings:
    """The grid's own settings, which a search starts from."""
    (settings,) = grid.transfer.settings_of(search.method)[:1]
    start = _start_options(grid)
    found = options_to_search(search.method, grid.transfer.initializations[0], artifacts=search.artifacts)
    names = [name for name, option in found.items() if option.is_start]
    return replace(settings, start={name: getattr(start, name) for name in names})


def _start_options(grid: GridSpec) -> Options | None:
    kind = initialization(grid.transfer.initializations[0]).options
    return None if kind is None else grid.options.one(kind)


def _transfer(grid: GridSpec, search: SearchSpec, size: tuple[int, int], settings: TransferSettings) -> TransferSpec:
    where = {"start": grid.transfer.initializations[0], "seed": grid.seeds[0]}
    return grid.transferred(search.method, settings, depth=size[0], width=size[1], **where)


def _candidates(grid: GridSpec, search: SearchSpec) -> dict[str, list[TransferSettings]]:
    """Settings with each value of each searched option that changes what is stored, by the option's name."""
    default, found = _default_settings(grid, search), {}
    for one in default.options:
        for item in one.fields():
            if item.metadata["changes_bytes"] and (search.searched is None or item.name in search.searched):
                changed = [replace(one, **{item.name: value}) for value in item.metadata["search"].values]
                others = [tuple(new if o is one else o for o in default.options) for new in changed]
                found[item.name] = [replace(default, options=options) for options in others]
    return found


def _allowed_values(grid: GridSpec, search: SearchSpec, size: tuple[int, int]) -> dict[str, tuple[Any, ...]] | None:
    """Values of such options whose points keep to the limits at a size; None if there is no point at all that does."""
    candidates = _candidates(grid, search)
    if not candidates:
        return {} if _within(search, _transfer(grid, search, size, _default_settings(grid, search))) else None
    allowed = {
        name: tuple(s.plain()[name] for s in settings if _within(search, _transfer(grid, search, size, s)))
        for name, settings in candidates.items()
    }
    return allowed if all(allowed.values()) else None


def _costs(transfer: TransferSpec) -> dict[str, int]:
    return {"params_total": served_parameters(transfer), "serve_bytes": result_bytes(transfer)}


def _within(search: SearchSpec, transfer: TransferSpec) -> bool:
    costs = _costs(transfer)
    return all(costs[name] <= limit for name, limit in search.limits.items())


def _smallest(grid: GridSpec, search: SearchSpec, sizes: dict[str, tuple[int, int]]) -> str:
    """The least that any point of the grid takes of what is limited."""
    candidates = [s for settings in _candidates(grid, search).values() for s in settings]
    candidates = candidates or [_default_settings(grid, search)]
    costs = [_costs(_transfer(grid, search, size, settings)) for size in sizes.values() for settings in candidates]
    return "the least is " + ", ".join(f"{name} {min(cost[name] for cost in costs):,}" for name in search.limits)


def _study(
    grid: GridSpec,
    search: SearchSpec,
    sizes: dict[str, tuple[int, int]],
    allowed: dict[str, dict[str, tuple[Any, ...]]],
) -> StudySpec:
    space = build_space(
        method=search.method,
        start=grid.transfer.initializations[0],
        default=_default_settings(grid, search),
        start_options=_start_options(grid),
        base_steps=grid.steps,
        searched=search.searched,
        allowed=allowed,
        artifacts=search.artifacts,
    )
    spec = StudySpec(
        name=search.study or "",
        method=search.method,
        initialization=grid.transfer.initializations[0],
        sizes=sizes,
        space=space,
        objectives=search.objectives,
        num_trials=search.num_trials,
        sampler=search.sampler,
        seed=search.study_seed,
        grid=grid,
        known=_known_points(search, space, sizes),
        halving=_halving(grid, search),
        limits=search.limits,
    )
    _check_forgetting(spec)
    spec.point(spec.default_transfer(next(iter(sizes)))).score.extractor.check_metrics(metrics_among(spec.objectives))
    name = f"{search.study or study_digest(spec)}-{spec.title.replace(' ', '-')}"
    return replace(spec, name=name)


def _halving(grid: GridSpec, search: SearchSpec) -> HalvingSpec | None:
    """None where trials are not to be stopped early. Several objectives have no order to halve by."""
    if not search.early_stopping or len(search.objectives) > 1:
        return None
    rungs = rungs_of(grid.transfer.steps, search.reduction_factor)
    if not rungs:
        return None
    samples = min(search.proxy_samples, grid.num_samples)
    evaluation = EvaluationSpec(num_samples=samples, sampler=grid.sampler)
    return HalvingSpec(rungs=rungs, reduction_factor=search.reduction_factor, evaluation=evaluation)


def _known_points(search: SearchSpec, space: SearchSpace, sizes: dict[str, tuple[int, int]]) -> tuple[Point, ...]:
    """The papers' defaults at every size that allows them, then the points that were asked for."""
    good = {size: _known_good(search, space.default_at(size)) for size in sizes}
    points = [space.point(settings[0], size) for size, settings in good.items()]
    for size, settings in good.items():
        points += [space.point(other, size) for other in settings[1:] if space.can_choose(other, size)]
    only_size = next(iter(sizes)) if len(sizes) == 1 else None
    points += [space.known_point(text, only_size) for text in search.known_points]
    return tuple({str(point): point for point in points}.values())


def _known_good(search: SearchSpec, default: TransferSettings) -> list[TransferSettings]:
    return [replace(default, options=options) for options in transfer_method(search.method).known_good(default.options)]


def _check_forgetting(study: StudySpec) -> None:
    if "forgetting" not in study.objectives:
        return
    for size in study.sizes:
        transfer = study.default_transfer(size)
        check(
            transfer.model.input_size == transfer.base.model.input_size,
            f"forgetting cannot be measured: images of {transfer.dataset!r} have another size than the source's",
        )


def _check_objectives(search: SearchSpec, studies: Sequence[StudySpec]) -> None:
    if "serve_bytes" not in search.objectives:
        return
    for study in studies:
        choices = [p for p in study.space.parameters if isinstance(p, Choice)]
        costly = {"size", *_candidates(study.grid, search)}
        varies = any(len(p.values) > 1 and p.name.partition(AT_SIZE)[0] in costly for p in choices)
        check(
            varies,
            f"every point of {study.label} stores the same bytes; search several sizes (--size all), "
            "a method with an option that changes them, or leave serve_bytes out",
        )


def points_of_all_bases(study: StudySpec) -> list[Point]:
    """Points that between them need every base model and bank that the study may ask for."""
    starts = {option.first for option in study.space.options if option.is_start}
    choices = [p for p in study.space.parameters if isinstance(p, Choice) and p.name in starts]
    combinations = product(*(choice.values for choice in choices))
    values = [dict(zip((choice.name for choice in choices), combination, strict=True)) for combination in combinations]
    return [{"size": size, **chosen} for size in study.sizes for chosen in values]
