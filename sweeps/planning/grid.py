"""A size grid: every initialization at every depth and width, and what is done to its base models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product
from typing import Any

from fine_core.data.registry import dataset_info
from fine_core.dit import DiTConfig, ModelSize
from fine_core.evaluation.metrics import DEFAULT_METRICS
from fine_core.evaluation.protocol import EvaluationSpec
from fine_core.sampling.sampler import SamplerSpec
from sweeps.planning.chosen import ChosenOptions, options_of_initializations
from sweeps.planning.points import DecompositionScores, PlannedPoint
from sweeps.planning.settings import TransferSettings
from sweeps.planning.transfer_grid import TransferGridSpec, scorer
from trainables.initializations import Setting, initialization
from trainables.methods import transfer_method
from trainables.specs.base import FileSpec, SourceSpec, TrainingSpec, VaeSpec, check
from trainables.specs.models import BaseModelSpec, FineSpec, InitializationSpec, LearngeneSpec, MilestoneSpec, model_config
from trainables.specs.options import Options
from trainables.specs.scorers import ExtractorSpec, GivenExtractorSpec
from trainables.specs.scores import Scored, ScoreSpec, null_label
from trainables.specs.transfers import TransferSpec

EQUAL_STEPS = ("total", "free")


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

    `options` are those of the initializations; `transfer` is None without a transfer stage. `source` is a given model that all
    points take their shape from, but for depth and width. `scoring` is None where the built-in classifiers score;
    `forgetting` is how the source domain is scored after a transfer, None if not. `parameterization` is that of all models,
    unless there is a `source`, which has its own. What is pre-trained once for all sizes trains for `source_steps`, once for
    each of `source_seeds`. `equal_steps`: whether `steps` are all steps of a base model, or those in which everything is
    trained. `score_at`: so many of these steps after which base models are scored too.
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
    options: ChosenOptions
    num_samples: int
    sampler: SamplerSpec
    transfer: TransferGridSpec | None = None
    source: SourceSpec | None = None
    scoring: ScoringSpec | None = None
    forgetting: EvaluationSpec | None = None
    parameterization: str = "ddpm"
    precision: str = "fp32"
    metrics: tuple[str, ...] = DEFAULT_METRICS
    source_steps: int = 0
    source_seeds: tuple[int, ...] = (0,)
    equal_steps: str = "total"
    score_at: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("depths", "widths", "methods", "seeds"):
            check(len(getattr(self, name)) > 0, f"{name} is empty; name at least one")
        check(self.head_dim >= 1, f"head_dim is {self.head_dim}; it must be at least 1")
        check(all(seed >= 0 for seed in self.seeds), "seeds must be 0 or more")
        check(len(self.source_seeds) > 0, "source_seeds is empty; name at least one")
        check(all(seed >= 0 for seed in self.source_seeds), "source_seeds must be 0 or more")
        check(self.equal_steps in EQUAL_STEPS, f"unknown equal_steps {self.equal_steps!r}; choose {' or '.join(EQUAL_STEPS)}")
        wrong = [step for step in self.score_at if not 0 <= step < self.steps]
        check(not wrong, f"score_at is {wrong[0] if wrong else 0}; it must be 0 to steps - 1 ({self.steps - 1})")
        if self.source is not None:
            self._check_source(self.source.model)
        for kind in options_of_initializations():
            self.options.one(kind)  # raises ValueError for a value that it cannot have
        for method in self.methods:
            needs_source = initialization(method).needs_source
            check(not needs_source or self.source is not None, f"initialization {method!r} is the model of --source; name one")
        dataset_info(self.dataset)  # is it there? Said before what could score it is looked at
        self.extractor.check_data()
        for method in self.methods:
            self.initialization(method)  # raises ValueError for options that do not fit the grid

    def _check_source(self, model: DiTConfig) -> None:
        info = dataset_info(self.dataset)
        fits = (info.channels, info.image_size) == (model.in_channels, model.input_size)
        check(
            fits and info.num_classes <= model.num_classes,
            f"the source takes images of {model.in_channels} x {model.input_size} x {model.input_size} and {model.num_classes} "
            f"classes, {self.dataset!r} has {info.channels} x {info.image_size} x {info.image_size} and {info.num_classes}; "
            "name another --dataset",
        )
        if not model.has_null_label:
            self._check_without_null_label()

    def _check_without_null_label(self) -> None:
        """Raises ValueError for what needs the null label of a source that has none."""
        bank = None if self.transfer is None else self.transfer.bank_sampler
        for option, sampler in {"--guidance-scale": self.sampler, "--bank-guidance-scale": bank}.items():
            check(
                sampler is None or sampler.guidance_scale <= 1,
                f"the source has no null label, which guidance needs; set {option} 1",
            )
        methods = () if self.transfer is None else self.transfer.methods
        taught = [name for name in methods if getattr(transfer_method(name), "distils", False)]
        options = [self.options.one(kind) for kind in options_of_initializations()]
        taught += [one.group for one in options if getattr(one, "teacher_weight", 0) > 0]
        check(not taught, f"the source has no null label, under which {', '.join(taught)} would follow it; leave it out")
        check(
            self.transfer is None or self.forgetting is None,
            "the source has no null label, under which forgetting is measured; set --forgetting none",
        )

    def _model(self, size: ModelSize) -> DiTConfig:
        if self.source is None:
            return model_config(self.dataset, size, patch_size=self.patch_size, parameterization=self.parameterization)
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
            steps=steps,
            batch_size=self.batch_size,
            lr=self.lr,
            ema_decay=self.ema_decay,
            grad_clip=self.grad_clip,
            precision=self.precision,
        )

    def _setting(self, source_seed: int) -> Setting:
        given = None if self.source is None else self.source.model.size
        return Setting(
            dataset=self.dataset,
            largest=self._model(given or self.size(max(self.depths), max(self.widths))),
            smallest=self._model(given or self.size(min(self.depths), min(self.widths))),
            widths=self.widths,
            training=self._training(self.steps),
            source=self.source,
            source_steps=self.source_steps,
            source_seed=source_seed,
            counts_free_steps=self.equal_steps == "free",
        )

    @cached_property
    def setting(self) -> Setting:
        """What initializations are told of this grid."""
        return self._setting(self.source_seeds[0])

    @cached_property
    def _initializations(self) -> dict[tuple[str, int], InitializationSpec]:
        return {}

    def options_of(self, name: str, changes: Mapping[str, Any] | None = None) -> Options | None:
        """The options of an initialization. `changes`: some in the place of the grid's."""
        kind = initialization(name).options
        return None if kind is None else replace(self.options.one(kind), **(changes or {}))

    def initialization(
        self, name: str, changes: Mapping[str, Any] | None = None, source_seed: int | None = None
    ) -> InitializationSpec:
        """How base models of an initialization start. `changes`: options of its own in the place of the grid's."""
        seed = self.source_seeds[0] if source_seed is None else source_seed
        if changes:
            return initialization(name).spec(self._setting(seed), self.options_of(name, changes))
        if (name, seed) not in self._initializations:  # one object, whose artifacts' ids are hashed once for all points
            self._initializations[name, seed] = initialization(name).spec(self._setting(seed), self.options_of(name))
        return self._initializations[name, seed]

    @property
    def learngene(self) -> LearngeneSpec:
        """What all base models of FINE are assembled from."""
        spec = self.initialization("fine")
        assert isinstance(spec, FineSpec)
        return spec.learngene

    @cached_property
    def extractor(self) -> ExtractorSpec:
        """What scores the source domain."""
        return scorer(self.dataset) if self.scoring is None else self.scoring.extractor_of(self.dataset)

    @cached_property
    def _evaluation(self) -> EvaluationSpec:
        return EvaluationSpec(num_samples=self.num_samples, sampler=self.sampler, metrics=self.metrics)

    def score(self, scored: Scored, *, seed: int, replaced_steps: int = 0) -> ScoreSpec:
        """The score of a model on its own dataset by the grid's protocol."""
        extractor = self.extractor
        if isinstance(scored, TransferSpec) and self.transfer is not None:
            extractor = self.transfer.extractor(self.extractor)
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
        if base is model:
            return PlannedPoint(model=model, score=score, milestones=self.milestones(base))
        if self.forgetting is None or model.model.input_size != base.model.input_size:
            return PlannedPoint(model=model, score=score)
        after, before = (
            ScoreSpec(scored=scored, evaluation=null_label(self.forgetting), extractor=self.extractor, seed=base.seed)
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

    def sizes_of(self, method: str) -> dict[str, tuple[int, int]]:
        """(depth, width) of every size that an initialization makes, by the size's name."""
        sizes = initialization(method).sizes(self.setting, self.options_of(method), self._asked)
        return {size.name: (size.depth, size.width) for size in sizes}

    @cached_property
    def _asked(self) -> list[ModelSize]:
        return [self.size(depth, width) for depth, width in product(self.depths, self.widths)]

    @property
    def refusals(self) -> tuple[str, ...]:
        """Sizes that an initialization cannot make, and why."""
        found = []
        for name in self.methods:
            for size in self._asked:
                if (reason := initialization(name).refusal(self.setting, self.options_of(name), size)) is not None:
                    found.append(f"{name} {size.name} is left out: {reason}")
        return tuple(found)

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """(depth, width) of every size, by its name."""
        return {name: size for method in self.methods for name, size in self.sizes_of(method).items()}

    def transferred(
        self,
        method: str,
        settings: TransferSettings,
        *,
        start: str,
        depth: int,
        width: int,
        seed: int,
        source_seed: int | None = None,
    ) -> TransferSpec:
        """One transfer with settings of its own, which may bring a base model of its own."""
        base = self.base_model(start, depth, width, seed, changes=settings.start, source_seed=source_seed)
        return self.transfer.transfer(base, method, settings)

    @property
    def repeats(self) -> list[tuple[int, int]]:
        """(seed, source seed) of every repeat of a point. Without a pre-trained source, the second makes no difference."""
        return list(product(self.seeds, self.source_seeds))

    def base_models(self, method: str, depth: int, width: int) -> list[BaseModelSpec]:
        """The base models of one point, one for every repeat that differs."""
        found = [self.base_model(method, depth, width, seed, source_seed=source) for seed, source in self.repeats]
        return list({base.id: base for base in found}.values())

    def base_model(
        self,
        method: str,
        depth: int,
        width: int,
        seed: int,
        *,
        changes: Mapping[str, Any] | None = None,
        source_seed: int | None = None,
    ) -> BaseModelSpec:
        """The base model of one point. `changes`: options of the initialization in the place of the grid's own."""
        steps = initialization(method).steps(self.setting, self.options_of(method, changes), self.steps)
        return BaseModelSpec(
            initialization=self.initialization(method, changes, source_seed),
            model=self._model(self.size(depth, width)),
            dataset=self.dataset,
            training=self._training(steps),
            seed=seed,
        )

    def milestones(self, base: BaseModelSpec) -> tuple[ScoreSpec, ...]:
        """The scores of a base model on its way: as it starts, and after so many steps in which everything is trained."""
        first = base.initialization.coefficient_steps
        steps = {0, *(first + step for step in self.score_at)} if self.score_at else set()
        asked = sorted(step for step in steps if step < base.training.steps)
        return tuple(self.score(MilestoneSpec(base=base, step=step), seed=base.seed) for step in asked)
