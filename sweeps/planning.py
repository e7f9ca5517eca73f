"""From a grid to a plan: unique artifacts by stage, and trials. Computes nothing."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import TypeVar

from fine_core.data import dataset_info
from fine_core.dit import DiTConfig, ModelSize
from fine_core.evaluation import EvaluationSpec
from fine_core.sampling import SamplerSpec
from sweeps.costs import estimated_core_s
from sweeps.pareto import TUNED, MethodNames
from sweeps.settings import TransferSettings, tuned_for_size
from sweeps.transfer_planning import TransferGridSpec, scorer
from trainables.initializations import INITIALIZATIONS
from trainables.model_spec import (
    DecomposedLearngeneSpec,
    FineSpec,
    GivenSpec,
    LearngeneSpec,
    PointSpec,
    ScratchSpec,
    TrialSpec,
    model_config,
)
from trainables.scorer_spec import ExtractorSpec, GivenExtractorSpec
from trainables.spec import FileSpec, JobSpec, SourceSpec, TrainingSpec, VaeSpec, check
from trainables.store import Store
from trainables.transfer_spec import BankSpec, CurveSpec, TransferSpec

Job = TypeVar("Job", bound=JobSpec)


@dataclass(frozen=True, kw_only=True)
class ScoringSpec:
    """An extractor that was brought along, with the reference of the source domain and the VAE of latents, if any."""

    extractor: FileSpec
    format: str
    weights_sha256: str
    reference: FileSpec | None = None
    vae: VaeSpec | None = None

    def extractor_of(self, dataset: str) -> GivenExtractorSpec:
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return GivenExtractorSpec(dataset=dataset, **parts)


@dataclass(frozen=True, kw_only=True)
class GridSpec:
    """A size grid: every method at every depth x width, once per seed, and what is done to each of these base models.

    `rank_ratio` is the factors' rank over the width; `transfer` is None without a transfer stage. `source` is a given model
    that FINE's learngene is decomposed from and all points take their shape from, but for depth and width. `scoring` is
    None where the built-in classifiers score.
    """

    dataset: str
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    head_dim: int
    patch_size: int
    steps: int
    batch_size: int
    lr: float
    ema_decay: float
    grad_clip: float | None
    sigma_init: str
    sigma_steps: int
    sigma_lr: float
    width_mode: str
    source_steps: int
    rank_ratio: float
    num_samples: int
    sampler: SamplerSpec
    transfer: TransferGridSpec | None = None
    source: SourceSpec | None = None
    scoring: ScoringSpec | None = None
    als_sweeps: int
    teacher_weight: float

    def __post_init__(self) -> None:
        for name in ("depths", "widths", "methods", "seeds"):
            check(len(getattr(self, name)) > 0, f"{name} is empty; name at least one")
        check(self.head_dim >= 1, f"head_dim is {self.head_dim}; it must be at least 1")
        check(self.rank_ratio > 0, f"rank_ratio is {self.rank_ratio}; it must be positive")
        check(self.sigma_lr > 0, f"sigma_lr is {self.sigma_lr}; it must be positive")
        check(all(seed >= 0 for seed in self.seeds), "seeds must be 0 or more")
        if self.source is not None:
            self._check_source(self.source.model)
        for method in self.methods:
            check(method in INITIALIZATIONS, f"unknown method {method!r}; choose from {', '.join(INITIALIZATIONS)}")
        check("given" not in self.methods or self.source is not None, "method 'given' is the model of --source; name one")
        dataset_info(self.dataset)  # is it there? Said before what could score it is looked at
        self._extractor.check_data()

    def _check_source(self, model: DiTConfig) -> None:
        info = dataset_info(self.dataset)
        fits = (info.channels, info.image_size) == (model.in_channels, model.input_size)
        check(
            fits and info.num_classes <= model.num_classes,
            f"the source takes images of {model.in_channels} x {model.input_size} x {model.input_size} and {model.num_classes} "
            f"classes, {self.dataset!r} has {info.channels} x {info.image_size} x {info.image_size} and {info.num_classes}; "
            "name another --dataset",
        )

    def _model(self, size: ModelSize) -> DiTConfig:
        if self.source is None:
            return model_config(self.dataset, size, patch_size=self.patch_size)
        check(
            size.width <= self.source.model.size.width,
            f"width {size.width} is wider than the source's {self.source.model.size.width}; name a smaller one",
        )
        return replace(self.source.model, size=size)

    def size(self, depth: int, width: int) -> ModelSize:
        multiple = max(1, round(width / self.head_dim)) * self.head_dim
        check(
            width > 0 and width % self.head_dim == 0,
            f"width {width} is not divisible into heads of {self.head_dim} channels; use {multiple}, or another --head-dim",
        )
        return ModelSize(depth=depth, width=width, num_heads=width // self.head_dim)

    def _training(self, steps: int) -> TrainingSpec:
        return TrainingSpec(
            steps=steps, batch_size=self.batch_size, lr=self.lr, ema_decay=self.ema_decay, grad_clip=self.grad_clip
        )

    @property
    def learngene(self) -> LearngeneSpec:
        """The source of every FINE trial: as deep and wide as the grid's largest model, or as the given one."""
        size = self.size(max(self.depths), max(self.widths)) if self.source is None else self.source.model.size
        nested = tuple(sorted(set(self.widths) - {size.width})) if self.width_mode == "nested" else ()
        common = {
            "dataset": self.dataset,
            "model": self._model(size),
            "rank": max(1, round(self.rank_ratio * size.width)),
            "nested_widths": nested,
            "training": self._training(self.source_steps),
        }
        if self.source is None:
            return LearngeneSpec(**common)
        return DecomposedLearngeneSpec(
            **common,
            source=self.source,
            als_sweeps=self.als_sweeps,
            teacher_weight=self.teacher_weight,
            evaluation=self._evaluation,
            extractor=self._extractor,
        )

    @property
    def _extractor(self) -> ExtractorSpec:
        return scorer(self.dataset) if self.scoring is None else self.scoring.extractor_of(self.dataset)

    @property
    def _evaluation(self) -> EvaluationSpec:
        return EvaluationSpec(num_samples=self.num_samples, sampler=self.sampler)

    def initialization(self, method: str) -> FineSpec | ScratchSpec | GivenSpec:
        if method == "scratch":
            return ScratchSpec()
        if method == "given":
            return GivenSpec(source=self.source)
        return FineSpec(
            learngene=self.learngene,
            sigma_init=self.sigma_init,
            sigma_steps=self.sigma_steps,
            sigma_lr=self.sigma_lr,
            width_mode=self.width_mode,
        )

    def sizes_of(self, method: str) -> dict[str, tuple[int, int]]:
        """(depth, width) of every size that a method has base models of, by the size's name."""
        points = product(self.depths, self.widths)
        if method == "given":
            points = [(self.source.model.size.depth, self.source.model.size.width)]
        return {self.size(depth, width).name: (depth, width) for depth, width in points}

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """(depth, width) of every size, by its name."""
        return {name: size for method in self.methods for name, size in self.sizes_of(method).items()}

    def transferred(
        self, method: str, settings: TransferSettings, *, initialization: str, depth: int, width: int, seed: int
    ) -> TransferSpec:
        """One transfer with settings of its own, which may bring a base model of its own."""
        base = self.trial(initialization, depth, width, seed, sigma_steps=settings.sigma_steps)
        return self.transfer.transfer(base, method, settings)

    def trial(self, method: str, depth: int, width: int, seed: int, *, sigma_steps: int | None = None) -> TrialSpec:
        """The base model of one point. `sigma_steps` takes the place of the grid's own."""
        initialization = self.initialization(method)
        if sigma_steps is not None and isinstance(initialization, FineSpec):
            initialization = replace(initialization, sigma_steps=sigma_steps)
        return TrialSpec(
            initialization=initialization,
            model=self._model(self.size(depth, width)),
            dataset=self.dataset,
            training=self._training(0 if method == "given" else self.steps),
            evaluation=self._evaluation,
            extractor=self._extractor,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The jobs of a sweep by stage; each stage needs only what those before it make.

    `source`: artifacts that base models share; `decompose`: the learngene of a given model, which they score; `base`: base
    models; `bank`: what they remember; `transfer`: base models taken to the target; `curve`: chain-of-forgetting curves of
    transfers.
    """

    source: tuple[JobSpec, ...]
    decompose: tuple[DecomposedLearngeneSpec, ...] = ()
    base: tuple[TrialSpec, ...]
    bank: tuple[BankSpec, ...] = ()
    transfer: tuple[TransferSpec, ...] = ()
    curve: tuple[CurveSpec, ...] = ()
    tuned: frozenset[str] = frozenset()  # ids of the points whose settings a search has found

    @property
    def names(self) -> MethodNames:
        """What its points are called."""
        return MethodNames(self.points, self.tuned)

    @property
    def points(self) -> tuple[PointSpec, ...]:
        """The jobs that have a score."""
        return (*self.base, *self.transfer)

    @property
    def identity(self) -> list[str]:
        """What makes it this sweep: its points, in whatever order they were asked for."""
        return sorted(job.id for job in (*self.points, *self.curve))

    @property
    def sweep_id(self) -> str:
        """A hash: the same grid is the same sweep."""
        return hashlib.sha256(" ".join(self.identity).encode()).hexdigest()[:10]

    @property
    def stages(self) -> dict[str, tuple[JobSpec, ...]]:
        """The stages that have jobs, in order."""
        names = ("source", "decompose", "base", "bank", "transfer", "curve")
        stages = {name: getattr(self, name) for name in names}
        return {name: jobs for name, jobs in stages.items() if jobs}

    @property
    def jobs(self) -> tuple[JobSpec, ...]:
        """The jobs of all stages, in the order of the stages."""
        return tuple(job for jobs in self.stages.values() for job in jobs)

    @property
    def labels(self) -> dict[str, str]:
        """A label for each job's id. Base models of one size that differ in their sigma steps say so, and tuned points."""
        count = Counter(job.label for job in self.jobs)
        labels = {job.id: job.label + (_sigma_suffix(job) if count[job.label] > 1 else "") for job in self.jobs}
        return {id: f"{label}, {TUNED}" if id in self.tuned else label for id, label in labels.items()}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a store holds of a plan, as ids: finished jobs, and others that are made and only to be scored in another way."""

    finished: frozenset[str]
    made: frozenset[str]


def find_jobs(plan: Plan, store: Store) -> Found:
    """Looks at records and whether files are there, not at what is in these."""
    return found_beside([job for job in plan.jobs if store.read_record(job) is None], plan, store)


def found_beside(missing: Sequence[JobSpec], plan: Plan, store: Store) -> Found:
    """The same where it is known which jobs have no record."""
    made = frozenset(job.id for job in missing if store.twin(job, intact=False) is not None)
    return Found(finished=frozenset(job.id for job in plan.jobs) - {job.id for job in missing}, made=made)


def plan_grid(grid: GridSpec) -> Plan:
    """Expand a grid. Largest models come first, so that no long trial is left over at the end. Raises ValueError."""
    points = [(method, *size) for method in grid.methods for size in grid.sizes_of(method).values()]
    bases = [grid.trial(*point, seed) for point in points for seed in grid.seeds]
    transfers = [] if grid.transfer is None else [transfer for base in bases for transfer in grid.transfer.transfers(base)]
    return plan_jobs(bases, transfers, tuned=tuned_transfers(grid))


def tuned_transfers(grid: GridSpec) -> list[TransferSpec]:
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


def plan_jobs(
    bases: Iterable[TrialSpec],
    transfers: Iterable[TransferSpec],
    curves: Iterable[CurveSpec] = (),
    *,
    tuned: Sequence[TransferSpec] = (),
) -> Plan:
    """The plan of these points and of all that they need. `tuned`: further transfers, whose settings a search has found; those
    among them, and among their base models, that are not points already are called so."""
    bases, transfers = list(bases), list(transfers)
    found = {job.id for t in tuned for job in (t.base, t)} - {job.id for job in (*bases, *transfers)}
    base, transfer = _unique([*bases, *(t.base for t in tuned)]), _unique([*transfers, *tuned])
    curve = _unique(curves)
    bank = _unique(job.bank for job in transfer if job.bank is not None)
    needs = {need.id: need for job in (*base, *transfer) for need in job.needs}
    decompose = tuple(need for need in needs.values() if isinstance(need, DecomposedLearngeneSpec))
    source = tuple(n for n in needs.values() if isinstance(n, ExtractorSpec | LearngeneSpec) and n not in decompose)
    return Plan(
        source=source, decompose=decompose, base=base, bank=bank, transfer=transfer, curve=curve, tuned=frozenset(found)
    )


def _unique(jobs: Iterable[Job]) -> tuple[Job, ...]:
    """Each job once, the longest first."""
    return tuple(sorted({job.id: job for job in jobs}.values(), key=lambda job: -estimated_core_s(job)))


def _sigma_suffix(job: JobSpec) -> str:
    base = job if isinstance(job, TrialSpec) else getattr(job, "base", None)
    return f", {base.initialization.sigma_steps} sigma steps" if base and isinstance(base.initialization, FineSpec) else ""
