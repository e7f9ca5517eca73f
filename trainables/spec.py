"""Frozen specs of what can be computed. A spec's id is a hash of its content: equal specs are computed once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import ClassVar

from fine_core.data import dataset_info
from fine_core.dit import DiTConfig, ModelSize
from fine_core.evaluation import EvaluationSpec

SPEC_VERSION = 1  # raised when the same spec would give other numbers than before


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

    @property
    def id(self) -> str:
        content = {"version": SPEC_VERSION, "kind": self.kind, **asdict(self)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder(self) -> str:
        return f"{self.kind}/{self.id}"

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        """Artifacts that must be in the store before this job starts."""
        return ()


@dataclass(frozen=True, kw_only=True)
class ExtractorSpec(JobSpec):
    """The feature extractor of an embedded dataset, and the reference features of its `train` split."""

    kind: ClassVar[str] = "extractor"
    label: ClassVar[str] = "feature extractor"
    total_steps: ClassVar[int] = 0
    dataset: str
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class LearngeneSpec(JobSpec):
    """Pre-training of a learngene under the constraint of shared factors (FINE phase 1)."""

    kind: ClassVar[str] = "learngene"
    label: ClassVar[str] = "learngene"
    dataset: str
    model: DiTConfig
    rank: int
    nested_widths: tuple[int, ...]
    training: TrainingSpec
    seed: int = 0

    @property
    def total_steps(self) -> int:
        return self.training.steps


@dataclass(frozen=True, kw_only=True)
class ScratchSpec:
    """Start from DiT's own initialization."""

    name: str = field(default="scratch", init=False)  # a field, so that it counts in the trial's id


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
class TrialSpec(JobSpec):
    """One point: an initialization and a size, trained for `training.steps` in all (sigma steps included) and scored."""

    kind: ClassVar[str] = "trial"
    initialization: ScratchSpec | FineSpec
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
    def total_steps(self) -> int:
        return self.training.steps

    @property
    def label(self) -> str:
        return f"{self.initialization.name} {self.size.name} seed {self.seed}"

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        if isinstance(self.initialization, FineSpec):
            return (self.extractor, self.initialization.learngene)
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
