"""Frozen specs of what can be computed. A spec's id is a hash of its content: equal specs are computed once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

from fine_core.data import dataset_info, image_size_of, reference_dataset, short_name
from fine_core.dit import DiTConfig, ModelSize
from fine_core.evaluation import EvaluationSpec
from fine_core.retention import RetentionSchedule
from fine_core.sampling import SamplerSpec

SPEC_VERSION = 3  # raised when the same spec would give other numbers than before


def check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """Optimization of one model: AdamW at a constant learning rate after a linear warm-up, and an EMA of the weights."""

    steps: int
    batch_size: int = 64
    lr: float = 1e-3
    warmup_steps: int = 20
    weight_decay: float = 0.0
    ema_decay: float = 0.99
    label_dropout: float = 0.1
    grad_clip: float | None = None

    def __post_init__(self) -> None:
        check(self.steps >= 0, f"steps is {self.steps}; it must be 0 or more")
        check(self.batch_size >= 1, f"batch_size is {self.batch_size}; it must be at least 1")
        check(self.lr > 0, f"lr is {self.lr}; it must be positive")
        check(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}; it must be in [0, 1)")
        check(self.grad_clip is None or self.grad_clip > 0, f"grad_clip is {self.grad_clip}; it must be positive")
        check(0 <= self.label_dropout < 1, f"label_dropout is {self.label_dropout}; it must be in [0, 1)")


class JobSpec:
    """Base of everything that is computed once, under an id, into a folder `<kind>/<id>` of the store."""

    kind: ClassVar[str]

    @cached_property
    def id(self) -> str:
        return _hash({"version": SPEC_VERSION, "kind": self.kind, **asdict(self)})

    @cached_property
    def made_id(self) -> str:
        """A hash of all that fixes what a job makes, but not how that is scored: jobs that share it share their files."""
        return _hash({"version": SPEC_VERSION, "kind": self.kind, **_without_scoring(asdict(self))})

    @property
    def folder(self) -> str:
        return f"{self.kind}/{self.id}"

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        """Artifacts that must be in the store before this job starts."""
        return ()

    @property
    def run_id(self) -> str:
        """What this job's checkpoints are kept under: jobs of one `run_id` are stretches of the same training."""
        return self.id


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _without_scoring(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    return {name: _without_scoring(value) for name, value in content.items() if name not in ("evaluation", "extractor")}


class TrainingJobSpec(JobSpec):
    """Base of the jobs that train a model by a `TrainingSpec`."""

    training: TrainingSpec

    @property
    def total_steps(self) -> int:
        return self.training.steps


@dataclass(frozen=True, kw_only=True)
class ExtractorSpec(JobSpec):
    """The feature extractor of an embedded dataset, and the reference statistics of its `pool` split."""

    kind: ClassVar[str] = "extractor"
    total_steps: ClassVar[int] = 0
    vae: ClassVar[None] = None
    dataset: str
    seed: int = 0

    def check_data(self) -> None:
        """Nothing: the embedded datasets are always there."""

    @property
    def label(self) -> str:
        return f"feature extractor of {short_name(self.dataset)}"


@dataclass(frozen=True, kw_only=True)
class BroughtSpec(JobSpec):
    """Base of what was brought along, known by the hash of its content. The sweep's process puts it into the store."""

    total_steps: ClassVar[int] = 0
    sha256: str


@dataclass(frozen=True, kw_only=True)
class FileSpec(BroughtSpec):
    """A file."""

    kind: ClassVar[str] = "file"
    label: ClassVar[str] = "file"
    name: str

    @property
    def quoted(self) -> str:
        """Name and hash, as protocols quote them."""
        return f"{self.name}@{self.sha256[:12]}"


@dataclass(frozen=True, kw_only=True)
class VaeSpec(BroughtSpec):
    """The autoencoder of latents."""

    kind: ClassVar[str] = "vae"
    label: ClassVar[str] = "VAE"


@dataclass(frozen=True, kw_only=True)
class GivenExtractorSpec(ExtractorSpec):
    """Features of an extractor that was brought along, and the reference statistics of a dataset by it.

    The reference comes from the dataset's images (of latents: those that they were made from), or from an ADM `.npz`. `vae`
    decodes what models of latents draw.
    """

    extractor: FileSpec
    format: str
    weights_sha256: str
    reference: FileSpec | None = None
    vae: VaeSpec | None = None

    @property
    def quoted(self) -> str:
        """Name and hash, of the file and of the weights that it leads to, as protocols quote them."""
        digest = hashlib.sha256(f"{self.extractor.sha256} {self.weights_sha256}".encode()).hexdigest()
        return f"{self.extractor.name}@{digest[:12]}"

    def check_data(self) -> None:
        """Raises ValueError if the dataset cannot be scored so. Looks at its files, which need not be there later."""
        latents = dataset_info(self.dataset).latents
        check(latents is None or self.vae is not None, f"{self.dataset} holds latents; name the VAE that decodes them: --vae")
        check(latents is not None or self.vae is None, f"{self.dataset} holds images; --vae is for latents, leave it out")
        check(
            latents is None or latents.vae_sha256 == self.vae.sha256,
            f"{self.dataset} was encoded by another VAE (sha256 {latents and latents.vae_sha256[:12]}...) than --vae",
        )
        if self.reference is None:
            try:
                dataset_info(reference_dataset(self.dataset))
            except ValueError as error:
                raise ValueError(
                    f"the images that {short_name(self.dataset)} is compared with cannot be used ({error}); "
                    "name an ADM .npz with --reference, or encode the latents again"
                ) from error

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        return tuple(need for need in (self.extractor, self.reference, self.vae) if need is not None)

    @property
    def label(self) -> str:
        return f"reference of {short_name(self.dataset)}"


@dataclass(frozen=True, kw_only=True)
class LearngeneSpec(TrainingJobSpec):
    """Pre-training of a learngene under the constraint of shared factors (FINE phase 1)."""

    kind: ClassVar[str] = "learngene"
    label: ClassVar[str] = "learngene"
    dataset: str
    model: DiTConfig
    rank: int
    nested_widths: tuple[int, ...]
    training: TrainingSpec
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SourceSpec(BroughtSpec):
    """A model."""

    kind: ClassVar[str] = "source"
    label: ClassVar[str] = "imported model"
    model: DiTConfig


@dataclass(frozen=True, kw_only=True)
class DecomposedLearngeneSpec(LearngeneSpec):
    """A learngene decomposed from a given model (FINE, first version), then trained under the constraint.

    `teacher_weight`: half of every batch follows the given model's outputs, at so many times the weight of the other half,
    which is denoised; 0 denoises all. Scored before and after the training.
    """

    label: ClassVar[str] = "learngene of the imported model"
    source: SourceSpec
    als_sweeps: int
    teacher_weight: float
    evaluation: EvaluationSpec
    extractor: ExtractorSpec

    def __post_init__(self) -> None:
        check(self.teacher_weight >= 0, f"teacher_weight is {self.teacher_weight}; it must be 0 or more")
        check(self.als_sweeps >= 0, f"als_sweeps is {self.als_sweeps}; it must be 0 or more")
        check(self.rank >= 1, f"rank is {self.rank}; it must be at least 1")

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        return (self.extractor, self.source)


@dataclass(frozen=True, kw_only=True)
class ScratchSpec:
    """Start from DiT's own initialization."""

    name: str = field(default="scratch", init=False)  # a field, so that it counts in the trial's id


@dataclass(frozen=True, kw_only=True)
class GivenSpec:
    """The model that was brought along, at its own size and as it is."""

    name: str = field(default="given", init=False)
    source: SourceSpec


@dataclass(frozen=True, kw_only=True)
class FineSpec:
    """Start from a learngene: assemble the size, train sigma alone for `sigma_steps`, merge, go on unconstrained.

    The four arms of the paper's ablation: `sigma_init` random, identical or linear with `sigma_steps` = 0, and
    "trainable", which is linear with `sigma_steps` > 0.
    """

    name: str = field(default="fine", init=False)
    learngene: LearngeneSpec
    sigma_init: str
    sigma_steps: int
    sigma_lr: float
    width_mode: str


@dataclass(frozen=True, kw_only=True)
class TrialSpec(TrainingJobSpec):
    """One point: an initialization and a size, trained for `training.steps` in all (sigma steps included) and scored."""

    kind: ClassVar[str] = "trial"
    initialization: ScratchSpec | FineSpec | GivenSpec
    model: DiTConfig
    dataset: str
    training: TrainingSpec
    evaluation: EvaluationSpec
    extractor: ExtractorSpec
    seed: int

    def __post_init__(self) -> None:
        if isinstance(self.initialization, FineSpec):
            sigma_steps, steps = self.initialization.sigma_steps, self.training.steps
            check(0 <= sigma_steps <= steps, f"sigma_steps is {sigma_steps}; it must be between 0 and steps ({steps})")

    @property
    def size(self) -> ModelSize:
        return self.model.size

    @property
    def label(self) -> str:
        return f"{self.initialization.name} {self.size.name} seed {self.seed}"

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        if isinstance(self.initialization, FineSpec):
            return (self.extractor, self.initialization.learngene)
        if isinstance(self.initialization, GivenSpec):
            return (self.extractor, self.initialization.source)
        return (self.extractor,)


@dataclass(frozen=True, kw_only=True)
class BankSpec(JobSpec):
    """The knowledge bank of a base model: `num_images` drawn once with uniform labels, shared by all transfers of it."""

    kind: ClassVar[str] = "bank"
    base: TrialSpec
    num_images: int
    sampler: SamplerSpec
    batch_size: int = 250

    def __post_init__(self) -> None:
        check(self.num_images >= 1, f"bank_images is {self.num_images}; it must be at least 1")

    @property
    def model(self) -> DiTConfig:
        return self.base.model

    @property
    def seed(self) -> int:
        return self.base.seed

    @property
    def total_steps(self) -> int:
        return self.num_images

    @property
    def label(self) -> str:
        return f"bank of {self.base.label}"

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        return (self.base,)


WEIGHTINGS = ("sampling", "loss")


@dataclass(frozen=True, kw_only=True)
class RehearsalSpec:
    """How Diff-Tuning spreads adaptation and retention over the timesteps.

    `weighting`: the schedule as probabilities of timesteps (the released code), or as loss weights (the paper's formula).
    `source_ratio` of a batch is rehearsed, at `retention_weight` times the target's mean loss; None and 0 if nothing is.
    """

    schedule: RetentionSchedule
    weighting: str
    retention_weight: float
    source_ratio: float | None

    def __post_init__(self) -> None:
        check(self.weighting in WEIGHTINGS, f"unknown weighting {self.weighting!r}; choose one of {', '.join(WEIGHTINGS)}")
        check(self.retention_weight >= 0, f"retention_weight is {self.retention_weight}; it must be 0 or more")
        check(
            (self.retention_weight == 0) == (self.source_ratio is None),
            "source_ratio must be None if and only if retention_weight is 0",
        )
        check(
            self.source_ratio is None or 0 < self.source_ratio < 1,
            f"source_ratio is {self.source_ratio}; it must be between 0 and 1",
        )

    def rehearsed_per_batch(self, batch_size: int) -> int:
        """Images of a batch that are rehearsed. Raises ValueError if none is left for the target."""
        number = max(1, round(batch_size * self.source_ratio))
        check(number < batch_size, f"a source_ratio of {self.source_ratio} leaves no target image in a batch of {batch_size}")
        return number


@dataclass(frozen=True, kw_only=True)
class TransferSpec(TrainingJobSpec):
    """A base model taken to a target domain by one method, scored there and, for forgetting, on its source domain.

    What a method does not use is None, so that options of others do not change its id.
    """

    kind: ClassVar[str] = "transfer"
    base: TrialSpec
    method: str
    rehearsal: RehearsalSpec | None
    bank: BankSpec | None
    gamma_span: float | None
    dataset: str
    training: TrainingSpec
    evaluation: EvaluationSpec
    extractor: ExtractorSpec
    seed: int

    def __post_init__(self) -> None:
        check(
            self.dataset != self.base.dataset,
            f"target {self.dataset!r} is what the base models learned already; name another, or --transfer none",
        )
        if self.rehearsal is not None and self.rehearsal.source_ratio is not None:
            self.rehearsal.rehearsed_per_batch(self.training.batch_size)

    @property
    def model(self) -> DiTConfig:
        """The base's model, at the target's resolution."""
        return self.base.model.at_resolution(image_size_of(self.dataset))

    def check_data(self) -> None:
        """Raises ValueError if the target does not fit the base. Looks at its files, which need not be there later."""
        info, base = dataset_info(self.dataset), self.base.model
        check(
            info.channels == base.in_channels,
            f"target {self.dataset!r} has {info.channels} channels, the base model {base.in_channels}; name another target",
        )
        check(
            info.num_classes <= base.num_classes,
            f"target {self.dataset!r} has {info.num_classes} classes, the base model's label table {base.num_classes}; "
            "name another target",
        )
        source = dataset_info(self.base.dataset).latents
        check(
            (info.latents and (info.latents.vae_sha256, info.latents.scale)) == (source and (source.vae_sha256, source.scale)),
            f"target {self.dataset!r} and source {self.base.dataset!r} must be latents of one VAE at one scale, or both images",
        )

    @property
    def size(self) -> ModelSize:
        return self.base.size

    @property
    def initialization(self) -> ScratchSpec | FineSpec | GivenSpec:
        return self.base.initialization

    @property
    def delta_config(self) -> dict[str, str]:
        """What its delta says of itself: the method, and the models that it leads from and to."""
        return {"method": self.method, "base": self.base.id, "transfer": self.id}

    @property
    def method_label(self) -> str:
        """The method with its schedule."""
        return self.method if self.rehearsal is None else f"{self.method} {self.rehearsal.schedule}"

    @property
    def label(self) -> str:
        return f"{self.method_label} {self.size.name} from {self.initialization.name} seed {self.seed}"

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        return (self.extractor, self.base) if self.bank is None else (self.extractor, self.base, self.bank)


class OfTransferSpec(JobSpec):
    """Base of the jobs that are about one transfer."""

    transfer: TransferSpec

    @property
    def model(self) -> DiTConfig:
        return self.transfer.model

    @property
    def seed(self) -> int:
        return self.transfer.seed


@dataclass(frozen=True, kw_only=True)
class RungSpec(OfTransferSpec, TrainingJobSpec):
    """The first `step` training steps of a transfer and a cheap score there, by which a search decides whether to go on.

    `evaluation` is the proxy protocol. The transfer, or its next rung, goes on from this rung's checkpoint.
    """

    kind: ClassVar[str] = "rung"
    transfer: TransferSpec
    step: int
    evaluation: EvaluationSpec

    def __post_init__(self) -> None:
        steps = self.transfer.training.steps
        check(0 < self.step < steps, f"a rung at step {self.step} is not within the transfer's {steps} steps")

    @property
    def training(self) -> TrainingSpec:
        return replace(self.transfer.training, steps=self.step)

    @property
    def label(self) -> str:
        return f"{self.transfer.label} step {self.step}"

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        return self.transfer.needs

    @property
    def run_id(self) -> str:
        return self.transfer.run_id


@dataclass(frozen=True, kw_only=True)
class CurveSpec(OfTransferSpec):
    """The chain-of-forgetting curve of one transfer: its score for each share of steps given back to the base model."""

    kind: ClassVar[str] = "curve"
    transfer: TransferSpec
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        check(len(self.shares) > 0, "shares is empty; name at least one")
        check(all(0 <= share <= 1 for share in self.shares), f"shares are {self.shares}; each must be between 0 and 1")

    @property
    def total_steps(self) -> int:
        return len(self.shares)

    @property
    def label(self) -> str:
        return f"curve of {self.transfer.label}"

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        return (self.transfer,)


def model_config(dataset: str, size: ModelSize, *, patch_size: int) -> DiTConfig:
    """The DiT of `size` for a dataset's images. Raises ValueError for an unknown dataset or a patch that does not fit."""
    info = dataset_info(dataset)
    return DiTConfig(
        size=size,
        input_size=info.image_size,
        patch_size=patch_size,
        in_channels=info.channels,
        num_classes=info.num_classes,
        learn_sigma=False,
    )
