"""Specs of what takes a base model to a target domain, and of what is learned about that."""

from __future__ import annotations

from typing import ClassVar

from fine_core.data.registry import dataset_info, image_size_of
from fine_core.dit import DiTConfig
from fine_core.retention import RetentionSchedule
from fine_core.sampling.sampler import SamplerSpec
from fine_core.sampling.schedulers import check_sampler_fits
from trainables.specs.base import JobSpec, TrainingSpec, check
from trainables.specs.identity import spec
from trainables.specs.models import BaseModelSpec, Initialization, PointSpec

WEIGHTINGS = ("sampling", "loss")


@spec("bank")
class BankSpec(JobSpec):
    """The knowledge bank of a base model: `num_images` drawn once with uniform labels, shared by all transfers of it."""

    kind: ClassVar[str] = "bank"
    base: BaseModelSpec
    num_images: int
    sampler: SamplerSpec
    batch_size: int = 250

    def __post_init__(self) -> None:
        check(self.num_images >= 1, f"bank_images is {self.num_images}; it must be at least 1")
        check_sampler_fits(self.sampler.sampler, self.model.parameterization)

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


@spec("rehearsal")
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
        number = max(1, round(batch_size * (self.source_ratio or 0.0)))
        check(number < batch_size, f"a source_ratio of {self.source_ratio} leaves no target image in a batch of {batch_size}")
        return number


@spec("transfer")
class TransferSpec(PointSpec):
    """A base model taken to a target domain by one method.

    What a method does not use is None, so that options of others do not change its id.
    """

    kind: ClassVar[str] = "transfer"
    version: ClassVar[int] = 4  # streams of its own, as the learngene
    base: BaseModelSpec
    method: str
    rehearsal: RehearsalSpec | None
    bank: BankSpec | None
    gamma_span: float | None
    dataset: str
    training: TrainingSpec
    seed: int

    def __post_init__(self) -> None:
        check(
            self.dataset != self.base.dataset,
            f"target {self.dataset!r} is what the base models learned already; name another, or --transfer none",
        )
        if self.rehearsal is not None and self.rehearsal.source_ratio is not None:
            self.rehearsal.rehearsed_per_batch(self.training.batch_size)

    @property
    def model(self) -> DiTConfig:  # type: ignore[override]
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
    def initialization(self) -> Initialization:  # type: ignore[override]
        return self.base.initialization

    @property
    def transfer_name(self) -> str:  # type: ignore[override]
        return self.method

    @property
    def method_label(self) -> str:
        """The method with its schedule."""
        return self.method if self.rehearsal is None else f"{self.method} {self.rehearsal.schedule}"

    @property
    def label(self) -> str:
        return f"{self.method_label} {self.size.name} from {self.initialization.name} seed {self.seed}"

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        return (self.base,) if self.bank is None else (self.base, self.bank)


@spec("rung")
class RungSpec:
    """A transfer after its first `step` training steps: what a search scores to decide whether to train on.

    Nothing of it is stored: the transfer's own checkpoints lead to it, and its training goes on from there.
    """

    transfer: TransferSpec
    step: int

    def __post_init__(self) -> None:
        steps = self.transfer.training.steps
        check(0 < self.step < steps, f"a rung at step {self.step} is not within the transfer's {steps} steps")
