"""Frozen specs of what can be computed, and of what is brought along. A spec's id is a hash of its content: equal specs are
computed once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

from fine_core.dit import DiTConfig

SPEC_VERSION = 3  # raised when the same spec would give other numbers than before


def check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


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


class TrainingJobSpec(JobSpec):
    """Base of the jobs that train a model by a `TrainingSpec`."""

    training: TrainingSpec

    @property
    def total_steps(self) -> int:
        return self.training.steps


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
class SourceSpec(BroughtSpec):
    """A model."""

    kind: ClassVar[str] = "source"
    label: ClassVar[str] = "imported model"
    model: DiTConfig
