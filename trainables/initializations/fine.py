"""FINE: assemble the size from the learngene, train sigma alone, merge to dense weights, go on unconstrained.

arXiv 2409.19289, section 3.3; the learning rate of the sigma phase is ours (the paper states none).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fine_core.initializers.fine.factorized import FactorizedDiT, merge
from fine_core.initializers.fine.learngene import Learngene
from fine_core.randomness import stream_generator, stream_seed
from trainables.specs.models import BaseModelSpec, LearngeneSpec
from trainables.training.loop import Phase


class FineRecipe:
    """Phase 0 trains sigma of the assembled model, phase 1 the merged model."""

    skips_parameters = False

    def __init__(self, job: BaseModelSpec, learngene: Learngene) -> None:
        self.job, self.fine, self.learngene = job, job.initialization, learngene
        self.phases = (
            Phase(name="sigma", steps=self.fine.sigma_steps, lr=self.fine.sigma_lr),
            Phase(name="free", steps=job.training.steps - self.fine.sigma_steps, lr=job.training.lr),
        )

    def model_for(self, phase: int, previous: nn.Module | None) -> nn.Module:
        if phase == 1:
            return merge(previous)
        return self.learngene.assemble(
            self.job.size,
            sigma_init=self.fine.sigma_init,
            width_mode=self.fine.width_mode,
            seed=stream_seed(self.job.seed, "init"),
        )

    def forward_options(self, step: int) -> dict[str, Any]:
        return {}


class LearngeneRecipe:
    """FINE phase 1: a model trained under the constraint, at a width drawn for every step; from scratch, or from `start`."""

    def __init__(self, spec: LearngeneSpec, start: FactorizedDiT | None = None) -> None:
        self.spec, self.start = spec, start
        self.phases = (Phase(name="learngene", steps=spec.training.steps, lr=spec.training.lr),)
        self.widths = sorted({spec.model.size.width, *spec.nested_widths})
        self.skips_parameters = len(self.widths) > 1

    def model_for(self, phase: int, previous: nn.Module | None) -> FactorizedDiT:
        if self.start is not None:
            return self.start
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(self.spec.data_seed, "init"))
            return FactorizedDiT(self.spec.model, rank=self.spec.rank, nested_widths=self.spec.nested_widths)

    def forward_options(self, step: int) -> dict[str, Any]:
        generator = stream_generator(self.spec.data_seed, "width", step)
        return {"width": self.widths[int(torch.randint(len(self.widths), (), generator=generator))]}
