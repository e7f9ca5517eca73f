"""Fine-tuning of all parameters, and training of all parameters from scratch."""

from __future__ import annotations

import torch

from fine_core.dit import DiT
from fine_core.transfer.delta import train_only
from trainables.methods.base import Start, TransferMethod
from trainables.specs.options import Options


class FullFineTuning(TransferMethod):
    name = "full"

    def prepare(self, model: DiT, options: tuple[Options, ...], start: Start) -> None:
        train_only(model, lambda name: True)


class Scratch(FullFineTuning):
    """The base model's knowledge is thrown away: the reference that every transfer has to beat."""

    name = "scratch"
    exact_start = False

    def prepare(self, model: DiT, options: tuple[Options, ...], start: Start) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(start.seed)
            model.load_state_dict(DiT(model.config).state_dict())
        super().prepare(model, options, start)
