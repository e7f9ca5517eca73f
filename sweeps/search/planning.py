"""From options to a search: its studies, and the jobs that must be done before them. Computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fine_core.evaluation.protocol import EvaluationSpec
from sweeps.planning.costs import predicted_serve_bytes, predicted_served_parameters, task_core_s
from sweeps.planning.grid import GridSpec
from sweeps.planning.plan import Plan, plan_tasks
from sweeps.planning.settings import TransferSettings
from sweeps.search.objectives import OBJECTIVES, metrics_among
from sweeps.search.space import GAMMA_SPANS, Choice, Point, SearchSpace, build_space
from sweeps.search.study import SAMPLERS, HalvingSpec, StudySpec, rungs_of, study_digest
from trainables.methods import transfer_method
from trainables.specs.base import check
from trainables.specs.transfers import TransferSpec

PAPER_FORMULA_WEIGHT = 1.0  # of retention; the released code has 0.1, the default (arXiv 2406.00773, section 3)


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
        """Whether the size is a parameter: it must be where its cost is an objective, and would never be small elsewhere."""
        return "serve_bytes" in self.objectives and len(self.sizes) > 1


@dataclass(frozen=True, kw_only=True)
class SearchPlan(Plan):
    """What comes before the studies, by stage, and the studies. Its base models are needs of the search, not points."""

    studies: tuple[StudySpec, ...]
    excluded: tuple[str, ...]  # sizes at which no point keeps to the limits

    @property
    def identity(self) -> list[str]:
        """Its studies: the same search is the same sweep, also with more trials."""
        return [study.name for study in self.studies]

    @property
    def num_trials(self) -> int:
        return sum(study.num_trials for study in self.studies)


def trial_core_s(study: StudySpec) -> float:
    """Seconds of one CPU core for a full trial of a study, at its most expensive size."""
    return max(task_core_s(study.point(study.default_transfer(size)).task) for size in study.sizes)


def plan_search(grid: GridSpec, search: SearchSpec) -> SearchPlan:
    """Raises ValueError for a search that cannot be made."""
    check(grid.transfer.steps > 0, f"{search.method} has no training steps to search over; see --transfer-steps")
    check(len(grid.seeds) == 1, "a search trains with one seed; compare what it finds over seeds with size_grid.py")
    check(len(grid.transfer.initializations) == 1, "a search takes base models of one initialization; see --transfer-from")
    grid = replace(grid, metrics=(*grid.metrics, *metrics_among(search.objectives)))
    sizes = _chosen_sizes(grid, search.sizes)
    search = replace(search, sizes=tuple(sizes))
    spans = {name: _allowed_spans(grid, search, sizes[name]) for name in sizes}
    allowed = {name: spans[name] for name in sizes if spans[name] is not None}
    limits = ", ".join(f"{name} <= {limit:,}" for name, limit in search.limits.items())
    check(bool(allowed), f"no point keeps to {limits}; {_smallest(grid, search, sizes)}")
    groups = [allowed] if search.is_joint and len(allowed) > 1 else [{name: allowed[name]} for name in allowed]
    studies = tuple(_study(grid, search, {name: sizes[name] for name in group}, group) for group in groups)
    _check_objectives(search, studies)
    points = [study.point(study.transfer(point)) for study in studies for point in _points_of_all_bases(study)]
    needed_before = [point.forgetting_before for point in points if point.forgetting_before is not None]
    before = plan_tasks([point.task for point in points], before=needed_before)
    excluded = tuple(name for name in sizes if name not in allowed)
    first = {stage: getattr(before, stage) for stage in ("source", "decompose", "learngene", "base", "bank")}
    return SearchPlan(**first, studies=studies, excluded=excluded)


def _chosen_sizes(grid: GridSpec, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    sizes = grid.sizes_of(grid.transfer.initializations[0])
    if not names:
        return dict([max(sizes.items(), key=lambda item: item[1])])
    if tuple(names) == ("all",):
        return sizes
    for name in names:
        check(name in sizes, f"the grid has no size {name!r}; choose from {', '.join(sizes)}, or all")
    return {name: sizes[name] for name in names}


def _default_settings(grid: GridSpec, method: str) -> TransferSettings:
    """The grid's own settings, which a search starts from."""
    schedules = grid.transfer.parsed_schedules()
    schedule = schedules[0] if transfer_method(method).rehearses else None
    sigma_steps = grid.sigma_steps if grid.transfer.initializations == ("fine",) else None
    return replace(grid.transfer.default_settings(method, schedule), sigma_steps=sigma_steps)


def _transfer(grid: GridSpec, search: SearchSpec, size: tuple[int, int], span: float) -> TransferSpec:
    settings = replace(_default_settings(grid, search.method), gamma_span=span)
    where = {"initialization": grid.transfer.initializations[0], "seed": grid.seeds[0]}
    return grid.transferred(search.method, settings, depth=size[0], width=size[1], **where)


def _allowed_spans(grid: GridSpec, search: SearchSpec, size: tuple[int, int]) -> tuple[float, ...] | None:
    """Gamma spans whose points keep to the limits at a size; None if there is no point at all that does."""
    spans = tuple(span for span in _candidate_spans(grid, search) if _within(search, _transfer(grid, search, size, span)))
    return spans or None


def _candidate_spans(grid: GridSpec, search: SearchSpec) -> tuple[float, ...]:
    """Those that are searched, or the one that is not."""
    searched = search.searched is None or "gamma_span" in search.searched
    return GAMMA_SPANS if searched and transfer_method(search.method).uses_scales else (grid.transfer.gamma_span,)


def _costs(transfer: TransferSpec) -> dict[str, int]:
    return {"params_total": predicted_served_parameters(transfer), "serve_bytes": predicted_serve_bytes(transfer)}


def _within(search: SearchSpec, transfer: TransferSpec) -> bool:
    costs = _costs(transfer)
    return all(costs[name] <= limit for name, limit in search.limits.items())


def _smallest(grid: GridSpec, search: SearchSpec, sizes: dict[str, tuple[int, int]]) -> str:
    """The least that any point of the grid takes of what is limited."""
    span = min(_candidate_spans(grid, search))
    costs = [_costs(_transfer(grid, search, size, span)) for size in sizes.values()]
    return "the least is " + ", ".join(f"{name} {min(cost[name] for cost in costs):,}" for name in search.limits)


def _study(
    grid: GridSpec, search: SearchSpec, sizes: dict[str, tuple[int, int]], spans: dict[str, tuple[float, ...]]
) -> StudySpec:
    space = build_space(
        method=search.method,
        initialization=grid.transfer.initializations[0],
        default=_default_settings(grid, search.method),
        base_steps=grid.steps,
        searched=search.searched,
        gamma_spans=spans,
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
    name = f"{search.study or study_digest(spec)}-{spec.label.replace(' ', '-')}"
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
    names = [parameter.name for parameter in space.parameters]
    weights = [space.default.retention_weight]
    if "retention_weight" in names:
        weights.append(PAPER_FORMULA_WEIGHT)
    points = [
        space.point(replace(space.default_at(size), retention_weight=weight), size) for weight in weights for size in sizes
    ]
    only_size = next(iter(sizes)) if len(sizes) == 1 else None
    points += [space.known_point(text, only_size) for text in search.known_points]
    return tuple({str(point): point for point in points}.values())


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
        varies = any(len(p.values) > 1 and (p.name == "size" or p.name.startswith("gamma_span")) for p in choices)
        check(
            varies,
            f"every point of {study.label} stores the same bytes; search several sizes (--size all), "
            "a method with gamma_span, or leave serve_bytes out",
        )


def _points_of_all_bases(study: StudySpec) -> list[Point]:
    """Points that between them need every base model and bank that the study may ask for."""
    sigma_steps = next((p.values for p in study.space.parameters if isinstance(p, Choice) and p.name == "sigma_steps"), None)
    points = [{"size": size} for size in study.sizes]
    return points if sigma_steps is None else [{**point, "sigma_steps": n} for point in points for n in sigma_steps]
