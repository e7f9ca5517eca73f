"""Specs of what takes a base model to a target domain, and of what is learned about that."""

from __future__ import annotations

from typing import ClassVar

from fine_core.data.registry import dataset_info, image_size_of
from fine_core.dit import DiTConfig
from fine_core.sampling.sampler import SamplerSpec
from fine_core.sampling.schedulers import check_sampler_fits
from trainables.specs.base import JobSpec, TrainingSpec, check
from trainables.specs.identity import spec
from trainables.specs.models import BaseModelSpec, InitializationSpec, PointSpec
from trainables.specs.options import Options

LEVEL_WEIGHTED = ("p2", "min-snr")  # methods that weighed the term of a learned variance too


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


@spec("transfer")
class TransferSpec(PointSpec):
    """A base model taken to a target domain by one method, with the options that this method has."""

    kind: ClassVar[str] = "transfer"
    versions: ClassVar = (5, 6)
    base: BaseModelSpec
    method: str
    options: tuple[Options, ...] = ()
    bank: BankSpec | None
    dataset: str
    training: TrainingSpec
    seed: int

    @property
    def version(self) -> int:  # type: ignore[override]
        """6 for methods with noise-level weights on a base with learned variance: before version 6 these weights also scaled
        the variance term. 5 for all other transfers: version 5 grouped the options of a method."""
        weighs = self.method in LEVEL_WEIGHTED or any(getattr(one, "weighting", None) == "loss" for one in self.options)
        return 6 if weighs and self.base.model.learn_sigma else 5

    def __post_init__(self) -> None:
        check(
            self.dataset != self.base.dataset,
            f"target {self.dataset!r} is what the base models learned already; name another, or --transfer none",
        )
        for options in self.options:
            options.check_training(self.training)

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
    def initialization(self) -> InitializationSpec:  # type: ignore[override]
        return self.base.initialization

    @property
    def transfer_name(self) -> str:  # type: ignore[override]
        return self.method

    @property
    def method_label(self) -> str:
        """The method with what tells its points apart."""
        return " ".join(part for part in (self.method, *(options.label for options in self.options)) if part)

    @property
    def label(self) -> str:
        return f"{self.method_label} {self.size.name} from {self.initialization.name} {self.seeds_label}"

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

    @property
    def trained(self) -> TransferSpec:
        return self.transfer
