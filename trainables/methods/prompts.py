"""VPT-Deep: a prompt token in each of the first blocks, and the final layer."""

from __future__ import annotations

from fine_core.dit import DiT
from fine_core.transfer.prompts import apply_prompts
from trainables.methods.base import Start, TransferMethod
from trainables.specs.options import Options


class VPTDeep(TransferMethod):
    name = "vpt-deep"
    lr_factor = 10.0
    exact_start = False  # the blocks attend to the prompt from the first step on
    mergeable = False

    def prepare(self, model: DiT, options: tuple[Options, ...], start: Start) -> None:
        apply_prompts(model, seed=start.seed)
