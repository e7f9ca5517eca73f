"""LoRA of one rank, on the fused qkv (the baseline of DiffFit's table) or on all linears of the blocks."""

from __future__ import annotations

from fine_core.dit import DiT
from fine_core.transfer.lora import apply_lora, merge_lora
from trainables.methods.base import MethodOptions, TransferMethod


class LoRA(TransferMethod):
    lr_factor = 10.0
    needs_extra = ("peft", "lora")

    def __init__(self, name: str, *, rank: int, targets: str) -> None:
        self.name, self.rank, self.targets = name, rank, targets

    def prepare(self, model: DiT, options: MethodOptions) -> None:
        apply_lora(model, rank=self.rank, targets=self.targets, seed=options.seed)

    def merge(self, model: DiT) -> DiT:
        return merge_lora(model)
