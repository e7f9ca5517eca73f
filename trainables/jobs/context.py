"""What a job is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fine_core.dit import DiT
from fine_core.evaluation.protocol import Protocol
from trainables.specs.base import JobSpec
from trainables.storage.record import History
from trainables.storage.store import Store
from trainables.training.context import RunContext
from trainables.training.loop import Milestones


@dataclass(frozen=True, kw_only=True)
class JobContext:
    """`folder`: where rank 0 leaves the files to be stored. `load`: gives the model that a finished job has made. `served`:
    the model to score, where it is in memory already. `milestones`: what is done on the way of a base model's training."""

    store: Store
    run: RunContext
    folder: Path
    checkpoint_every_steps: int
    load: Callable[[JobSpec], DiT]
    served: DiT | None = None
    milestones: Milestones = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a job measured (on rank 0). `served`: the model that it made, for the scores that follow in the same process."""

    metrics: dict[str, float] = field(default_factory=dict)
    history: History = field(default_factory=list)
    protocol: Protocol | None = None
    served: DiT | None = None
