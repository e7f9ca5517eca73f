"""Specs of learngenes and of base models: an initialization and a size, trained."""

from __future__ import annotations

from typing import ClassVar

from fine_core.data.registry import dataset_info
from fine_core.dit import DiTConfig, ModelSize
from trainables.specs.base import JobSpec, SourceSpec, TrainingJobSpec, TrainingSpec, check
from trainables.specs.identity import spec


def of_seed(seed: int) -> str:
    """What tells artifacts of another seed than 0 apart."""
    return f" seed {seed}" if seed else ""


@spec("decomposition")
class DecompositionSpec(JobSpec):
    """A learngene decomposed from a given model (FINE, first version): joint SVD, then alternating least squares."""

    kind: ClassVar[str] = "decomposition"
    source: SourceSpec
    rank: int
    nested_widths: tuple[int, ...]
    als_sweeps: int
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.als_sweeps >= 0, f"als_sweeps is {self.als_sweeps}; it must be 0 or more")
        check(self.rank >= 1, f"rank is {self.rank}; it must be at least 1")

    @property
    def model(self) -> DiTConfig:
        return self.source.model

    @property
    def label(self) -> str:
        return "decomposition of the imported model"

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        return (self.source,)


@spec("learngene")
class LearngeneSpec(TrainingJobSpec):
    """A learngene trained under the constraint of shared factors (FINE phase 1): from scratch, or from a decomposition.

    `teacher_weight` (with a decomposition): half of every batch is distilled from the given model's outputs, at so many times
    the weight of the other half, which is denoised; 0 denoises all.
    """

    kind: ClassVar[str] = "learngene"
    version: ClassVar[int] = 4  # streams of its own: it no longer sees the images, noise and timesteps of the base models
    dataset: str
    model: DiTConfig
    rank: int
    nested_widths: tuple[int, ...]
    training: TrainingSpec
    decomposition: DecompositionSpec | None = None
    teacher_weight: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.teacher_weight >= 0, f"teacher_weight is {self.teacher_weight}; it must be 0 or more")

    @property
    def label(self) -> str:
        name = "learngene" if self.decomposition is None else "learngene of the imported model"
        return name + of_seed(self.seed)

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        if self.decomposition is None:
            return ()
        return (self.decomposition, *((self.decomposition.source,) if self.teacher_weight > 0 else ()))


class InitializationSpec:
    """Base of how a base model starts."""

    name: ClassVar[str]

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        """Artifacts that must be in the store before."""
        return ()

    @property
    def details(self) -> dict[str, int]:
        """Settings that tell base models of one initialization and size apart."""
        return {}

    @property
    def coefficient_steps(self) -> int:
        """Steps of a base model in which only what the start leaves open is trained, before everything is."""
        return 0

    @property
    def source_seed(self) -> int:
        """The seed of what is pre-trained once for all sizes; 0 where there is nothing."""
        return 0

    def check_steps(self, steps: int) -> None:
        """Raises ValueError if a base model that trains for so many steps cannot start so."""


@spec("scratch")
class ScratchSpec(InitializationSpec):
    """Start from DiT's own initialization."""

    name: ClassVar[str] = "scratch"


@spec("given")
class GivenSpec(InitializationSpec):
    """The given model, at its own size and as it is."""

    name: ClassVar[str] = "given"
    source: SourceSpec

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        return (self.source,)


@spec("fine")
class FineSpec(InitializationSpec):
    """Start from a learngene: assemble the size, train sigma alone for `sigma_steps`, merge, go on unconstrained.

    The four arms of the paper's ablation: `sigma_init` random, identical or linear with `sigma_steps` = 0, and
    "trainable", which is linear with `sigma_steps` > 0.
    """

    name: ClassVar[str] = "fine"
    learngene: LearngeneSpec
    sigma_init: str
    sigma_steps: int
    sigma_lr: float
    width_mode: str

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        return (self.learngene,)

    @property
    def details(self) -> dict[str, int]:
        return {"sigma_steps": self.sigma_steps}

    @property
    def coefficient_steps(self) -> int:
        return self.sigma_steps

    @property
    def source_seed(self) -> int:
        return self.learngene.seed

    def check_steps(self, steps: int) -> None:
        sigma_steps = self.sigma_steps
        check(0 <= sigma_steps <= steps, f"sigma_steps is {sigma_steps}; it must be between 0 and steps ({steps})")


class PointSpec(TrainingJobSpec):
    """Base of the models that a sweep compares: trained on a dataset, and scored there."""

    initialization: InitializationSpec
    model: DiTConfig
    dataset: str
    training: TrainingSpec
    seed: int
    transfer_name: ClassVar[str] = "none"

    @property
    def size(self) -> ModelSize:
        return self.model.size

    @property
    def seeds_label(self) -> str:
        source = self.initialization.source_seed
        return f"seed {self.seed}" + (f" of source seed {source}" if source else "")


@spec("base")
class BaseModelSpec(PointSpec):
    """An initialization and a size, trained for `training.steps` in all (sigma steps included)."""

    kind: ClassVar[str] = "base"
    initialization: InitializationSpec
    model: DiTConfig
    dataset: str
    training: TrainingSpec
    seed: int

    def __post_init__(self) -> None:
        self.initialization.check_steps(self.training.steps)

    @property
    def label(self) -> str:
        return f"{self.initialization.name} {self.size.name} {self.seeds_label}"

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        return self.initialization.needs

    @property
    def data_seed(self) -> int:
        """The plain seed: base models from scratch keep the batches, and so the results, that they had in older versions."""
        return self.seed

    @property
    def base(self) -> BaseModelSpec:
        """Itself: of a transfer, what it was made from."""
        return self


@spec("milestone")
class MilestoneSpec:
    """A base model after its first `step` training steps (0: as it starts), to be scored. Nothing of it is stored."""

    base: BaseModelSpec
    step: int

    def __post_init__(self) -> None:
        steps = self.base.training.steps
        check(0 <= self.step < steps, f"a milestone at step {self.step} is not within the base model's {steps} steps")

    @property
    def trained(self) -> BaseModelSpec:
        return self.base


def model_config(dataset: str, size: ModelSize, *, patch_size: int, parameterization: str = "ddpm") -> DiTConfig:
    """The DiT of `size` for a dataset's images.

    Raises ValueError for an unknown dataset or parameterization, or a patch that does not fit.
    """
    info = dataset_info(dataset)
    return DiTConfig(
        size=size,
        input_size=info.image_size,
        patch_size=patch_size,
        in_channels=info.channels,
        num_classes=info.num_classes,
        learn_sigma=False,
        parameterization=parameterization,
    )
