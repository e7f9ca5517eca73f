"""Training from DiT's own initialization: the reference that every other start has to beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fine_core.dit import DiT, DiTConfig
from fine_core.initializers.inherited import fresh_model
from fine_core.randomness import stream_seed
from trainables.initializations.base import Initialization, Setting
from trainables.specs.models import BaseModelSpec, ScratchSpec
from trainables.specs.options import Options
from trainables.storage.store import Store
from trainables.training.phase import Phase

Fresh = Callable[[DiTConfig, int], DiT]  # of a config and a seed


class ScratchRecipe:
    """One phase from a model that depends on the seed alone."""

    skips_parameters = False

    def __init__(self, job: BaseModelSpec, fresh: Fresh = fresh_model) -> None:
        self.job, self.fresh = job, fresh
        self.phases = (Phase(name="free", steps=job.training.steps, lr=job.training.lr),)

    def model_for(self, phase: int, previous: nn.Module | None) -> DiT:
        return self.fresh(self.job.model, stream_seed(self.job.seed, "init"))

    def forward_options(self, step: int) -> dict[str, Any]:
        return {}


class Scratch(Initialization):
    name = "scratch"
    summary = "DiT's own initialization"

    def spec(self, setting: Setting, options: Options | None) -> ScratchSpec:
        return ScratchSpec()

    def recipe(self, job: BaseModelSpec, store: Store) -> ScratchRecipe:
        return ScratchRecipe(job)
