"""Specs of learngenes and of base models: an initialization and a size, trained and scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fine_core.data.registry import dataset_info
from fine_core.dit import DiTConfig, ModelSize
from fine_core.evaluation.protocol import EvaluationSpec
from trainables.specs.base import JobSpec, SourceSpec, TrainingJobSpec, TrainingSpec, check
from trainables.specs.scorers import ExtractorSpec


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
class PointSpec(TrainingJobSpec):
    """Base of the points of a sweep: models that are trained on a dataset and scored there."""

    dataset: str
    training: TrainingSpec
    evaluation: EvaluationSpec
    extractor: ExtractorSpec
    seed: int


@dataclass(frozen=True, kw_only=True)
class TrialSpec(PointSpec):
    """One point: an initialization and a size, trained for `training.steps` in all (sigma steps included) and scored."""

    kind: ClassVar[str] = "trial"
    initialization: ScratchSpec | FineSpec | GivenSpec
    model: DiTConfig

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
