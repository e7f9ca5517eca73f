"""A size grid: every initialization at every depth and width, and what is done to its base models."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product

from fine_core.data.registry import dataset_info
from fine_core.dit import DiTConfig, ModelSize
from fine_core.evaluation.metrics import DEFAULT_METRICS
from fine_core.evaluation.protocol import EvaluationSpec
from fine_core.sampling.sampler import SamplerSpec
from sweeps.planning.points import DecompositionScores, PlannedPoint
from sweeps.planning.settings import TransferSettings
from sweeps.planning.transfer_grid import TransferGridSpec, scorer
from trainables.initializations import INITIALIZATIONS
from trainables.specs.base import FileSpec, SourceSpec, TrainingSpec, VaeSpec, check
from trainables.specs.models import (
    BaseModelSpec,
    DecompositionSpec,
    FineSpec,
    GivenSpec,
    LearngeneSpec,
    ScratchSpec,
    model_config,
)
from trainables.specs.scorers import ExtractorSpec, GivenExtractorSpec
from trainables.specs.scores import Scored, ScoreSpec, null_label
from trainables.specs.transfers import TransferSpec


@dataclass(frozen=True, kw_only=True)
class ScoringSpec:
    """An extractor that the user gives, with the reference of the source domain and the VAE of latents, if any."""

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
    None where the built-in classifiers score; `forgetting` is how the source domain is scored after a transfer, None if not.
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
    forgetting: EvaluationSpec | None = None
    metrics: tuple[str, ...] = DEFAULT_METRICS

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
            check(method in INITIALIZATIONS, f"unknown initialization {method!r}; choose from {', '.join(INITIALIZATIONS)}")
        check(
            "given" not in self.methods or self.source is not None, "initialization 'given' is the model of --source; name one"
        )
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

    @cached_property  # one object, whose id is hashed once for all points
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
        decomposition = DecompositionSpec(
            source=self.source, rank=common["rank"], nested_widths=nested, als_sweeps=self.als_sweeps
        )
        return LearngeneSpec(**common, decomposition=decomposition, teacher_weight=self.teacher_weight)

    @cached_property
    def _extractor(self) -> ExtractorSpec:
        return scorer(self.dataset) if self.scoring is None else self.scoring.extractor_of(self.dataset)

    @cached_property
    def _evaluation(self) -> EvaluationSpec:
        return EvaluationSpec(num_samples=self.num_samples, sampler=self.sampler, metrics=self.metrics)

    def score(self, scored: Scored, *, seed: int, replaced_steps: int = 0) -> ScoreSpec:
        """The score of a model on its own dataset by the grid's protocol."""
        extractor = self._extractor
        if isinstance(scored, TransferSpec) and self.transfer is not None:
            extractor = self.transfer.extractor(self._extractor)
        return ScoreSpec(
            scored=scored, evaluation=self._evaluation, extractor=extractor, seed=seed, replaced_steps=replaced_steps
        )

    def point(self, model: BaseModelSpec | TransferSpec) -> PlannedPoint:
        """A model with the scores that are asked for it.

        What a transfer has forgotten is scored on the source domain under the null label: the classes have been given to the
        target, so the null label is where the source can still be remembered. (It learns of the target too, from target
        images whose label was dropped.) Not at another resolution than the source's.
        """
        score, base = self.score(model, seed=model.seed), model.base
        if self.forgetting is None or base is model or model.model.input_size != base.model.input_size:
            return PlannedPoint(model=model, score=score)
        after, before = (
            ScoreSpec(scored=scored, evaluation=null_label(self.forgetting), extractor=self._extractor, seed=base.seed)
            for scored in (model, base)
        )
        return PlannedPoint(model=model, score=score, forgetting=after, forgetting_before=before)

    def decomposition_scores(self) -> DecompositionScores:
        """Scores of the given model and of its learngene at the same size."""
        learngene = self.learngene
        decomposition = learngene.decomposition
        return DecompositionScores(
            decomposition=decomposition,
            learngene=learngene,
            source=self.score(decomposition.source, seed=learngene.seed),
            decomposed=self.score(decomposition, seed=learngene.seed),
            trained=self.score(learngene, seed=learngene.seed),
        )

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
        base = self.base_model(initialization, depth, width, seed, sigma_steps=settings.sigma_steps)
        return self.transfer.transfer(base, method, settings)

    def base_model(self, method: str, depth: int, width: int, seed: int, *, sigma_steps: int | None = None) -> BaseModelSpec:
        """The base model of one point. `sigma_steps` takes the place of the grid's own."""
        initialization = self.initialization(method)
        if sigma_steps is not None and isinstance(initialization, FineSpec):
            initialization = replace(initialization, sigma_steps=sigma_steps)
        return BaseModelSpec(
            initialization=initialization,
            model=self._model(self.size(depth, width)),
            dataset=self.dataset,
            training=self._training(0 if method == "given" else self.steps),
            seed=seed,
        )
