"""Training from DiT's own initialization: the reference that every other start has to beat."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fine_core.dit import DiT
from fine_core.randomness import stream_seed
from trainables.specs.models import TrialSpec
from trainables.training.loop import Phase


class ScratchRecipe:
    skips_parameters = False

    def __init__(self, trial: TrialSpec) -> None:
        self.trial = trial
        self.phases = (Phase(name="free", steps=trial.training.steps, lr=trial.training.lr),)

    def model_for(self, phase: int, previous: nn.Module | None) -> DiT:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(self.trial.seed, "init"))
            return DiT(self.trial.model)

    def forward_options(self, step: int) -> dict[str, Any]:
        return {}
