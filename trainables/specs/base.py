"""Bases of the specs of everything that is computed once, under an id, into a folder of the store."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from fine_core.dit import DiTConfig
from fine_core.precision import PRECISIONS
from fine_core.randomness import stream_seed
from trainables.specs.identity import added, id_of, spec


def check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class JobSpec:
    """Base of everything that is computed once, under an id, into a folder `<kind>/<id>` of the store.

    `version` is raised when the same spec would give other numbers than before; records of an older one are not used.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 4
    is_given: ClassVar[bool] = False  # by the user: it is not computed

    @cached_property
    def id(self) -> str:
        return id_of(self)

    @property
    def folder(self) -> str:
        return f"{self.kind}/{self.id}"

    @property
    def label(self) -> str:
        return self.kind

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        """Artifacts that must be in the store before this job starts."""
        return ()

    @property
    def total_steps(self) -> int:
        """What its progress counts to; 0 if it reports none."""
        return 0

    @property
    def run_id(self) -> str:
        """What this job's checkpoints are kept under: jobs of one `run_id` are stretches of the same training."""
        return self.id


@spec("training")
class TrainingSpec:
    """Optimization of one model: AdamW at a constant learning rate after a linear warm-up, and an EMA of the weights.

    `precision` is that of the products alone (see `fine_core.precision`).
    """

    steps: int
    batch_size: int = 64
    lr: float = 1e-3
    warmup_steps: int = 20
    weight_decay: float = 0.0
    ema_decay: float = 0.99
    label_dropout: float = 0.1
    grad_clip: float | None = None
    precision: str = added("fp32")

    def __post_init__(self) -> None:
        check(self.steps >= 0, f"steps is {self.steps}; it must be 0 or more")
        check(self.batch_size >= 1, f"batch_size is {self.batch_size}; it must be at least 1")
        check(self.lr > 0, f"lr is {self.lr}; it must be positive")
        check(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}; it must be in [0, 1)")
        check(self.grad_clip is None or self.grad_clip > 0, f"grad_clip is {self.grad_clip}; it must be positive")
        check(self.precision in PRECISIONS, f"unknown precision {self.precision!r}; choose one of {', '.join(PRECISIONS)}")
        check(0 <= self.label_dropout < 1, f"label_dropout is {self.label_dropout}; it must be in [0, 1)")


class TrainingJobSpec(JobSpec):
    """Base of the jobs that train a model by a `TrainingSpec`."""

    training: TrainingSpec
    seed: int

    @property
    def data_seed(self) -> int:
        """The seed of its batches. It depends on the kind of job: a learngene, a base model and a transfer of one seed see
        other images, noise and timesteps."""
        return stream_seed(self.seed, self.kind)

    @property
    def total_steps(self) -> int:
        return self.training.steps


class InputSpec(JobSpec):
    """Base of what the user gives, known by the hash of its content. The sweep's process puts it into the store."""

    is_given: ClassVar[bool] = True
    sha256: str


@spec("file")
class FileSpec(InputSpec):
    """A file."""

    kind: ClassVar[str] = "file"
    sha256: str
    name: str

    @property
    def quoted(self) -> str:
        """Name and hash, as protocols quote them."""
        return f"{self.name}@{self.sha256[:12]}"


@spec("vae")
class VaeSpec(InputSpec):
    """The autoencoder of latents."""

    kind: ClassVar[str] = "vae"
    sha256: str

    @property
    def label(self) -> str:
        return "VAE"


@spec("source")
class SourceSpec(InputSpec):
    """The user's own pre-trained model."""

    kind: ClassVar[str] = "source"
    sha256: str
    model: DiTConfig

    @property
    def label(self) -> str:
        return "imported model"
