"""Training from DiT's own initialization: the reference that every other start has to beat."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fine_core.dit import DiT
from fine_core.randomness import stream_seed
from trainables.initializations.base import Initialization, Setting
from trainables.specs.models import BaseModelSpec, ScratchSpec
from trainables.specs.options import Options
from trainables.storage.store import Store
from trainables.training.phase import Phase


class ScratchRecipe:
    skips_parameters = False

    def __init__(self, job: BaseModelSpec) -> None:
        self.job = job
        self.phases = (Phase(name="free", steps=job.training.steps, lr=job.training.lr),)

    def model_for(self, phase: int, previous: nn.Module | None) -> DiT:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(self.job.seed, "init"))
            return DiT(self.job.model)

    def forward_options(self, step: int) -> dict[str, Any]:
        return {}


class Scratch(Initialization):
    name = "scratch"
    summary = "DiT's own initialization"

    def spec(self, setting: Setting, options: Options | None) -> ScratchSpec:
        return ScratchSpec()

    def recipe(self, job: BaseModelSpec, store: Store) -> ScratchRecipe:
        return ScratchRecipe(job)
