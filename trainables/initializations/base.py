"""The interface of initializations: what one needs, which sizes it can make, and how a base model starts and trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fine_core.dit import DiTConfig, ModelSize
from trainables.jobs.kind import JobKind, Role
from trainables.specs.base import SourceSpec, TrainingSpec
from trainables.specs.models import BaseModelSpec, InitializationSpec
from trainables.specs.options import Options
from trainables.storage.store import Store
from trainables.training.loop import Recipe


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a grid gives to its initializations.

    `largest`: the model of its largest size, or the given model's; `smallest`: of its smallest size, or the given model's.
    `training`: that of its base models; `source_steps`, `source_seed`: of what is pre-trained once for all sizes.
    `counts_free_steps`: whether the steps asked for are those in which everything is trained, or all.
    """

    dataset: str
    largest: DiTConfig
    smallest: DiTConfig
    widths: tuple[int, ...]
    training: TrainingSpec
    source: SourceSpec | None
    source_steps: int
    source_seed: int = 0
    counts_free_steps: bool = False

    def training_for(self, steps: int) -> TrainingSpec:
        """The same training for another number of steps."""
        return replace(self.training, steps=steps)


class Initialization(ABC):
    """One way to start base models. `options`: the class of its own options. `kinds`: the artifacts that it makes once."""

    name: str
    summary: str
    options: type[Options] | None = None
    kinds: tuple[JobKind, ...] = ()
    needs_source: bool = False

    @abstractmethod
    def spec(self, setting: Setting, options: Options | None) -> InitializationSpec:
        """How its base models start in a grid. Raises ValueError for options that do not fit."""

    @abstractmethod
    def recipe(self, job: BaseModelSpec, store: Store) -> Recipe:
        """How one is trained. Loads what the job needs."""

    def refusal(self, setting: Setting, options: Options | None, size: ModelSize) -> str | None:
        """Why it cannot make a size, and which it can; None if it can."""
        return None

    def sizes(self, setting: Setting, options: Options | None, asked: Sequence[ModelSize]) -> list[ModelSize]:
        """The sizes of a grid that it makes."""
        return [size for size in asked if self.refusal(setting, options, size) is None]

    def steps(self, setting: Setting, options: Options | None, asked: int) -> int:
        """Training steps of its base models, where a grid asks for so many."""
        return asked

    def initialize_bytes(self, job: BaseModelSpec, store: Store) -> int:
        """Bytes that must be kept to initialize any size this way."""
        kept = {kind.name: kind.kept for kind in self.kinds if kind.kept is not None and kind.kept.role is Role.INITIALIZE}
        needs = [need for need in job.needs if need.kind in kept]
        return sum(store.record(need).files[kept[need.kind].file].bytes for need in needs)
