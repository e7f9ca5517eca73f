"""LoRA on the fused qkv (the baseline of DiffFit's table) or on all linears of the blocks."""

from __future__ import annotations

from typing import ClassVar

from fine_core.dit import DiT
from fine_core.transfer.lora import apply_lora, merge_lora
from trainables.methods.base import Start, TransferMethod
from trainables.specs.base import check
from trainables.specs.identity import spec
from trainables.specs.options import Choice, Options, of_kind, option


@spec("lora")
class LoRAOptions(Options):
    group: ClassVar[str] = "lora"
    rank: int = option(
        8,
        "rank of the low-rank matrices",
        search=Choice(name="rank", values=(2, 4, 8, 16, 32)),
        changes_bytes=True,
        label="r{}",
    )
    targets: str = option("qkv", "linears that are adapted: the fused qkv, or all of the blocks", choices=("qkv", "all"))

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.rank >= 1, f"rank is {self.rank}; it must be at least 1")


class LoRA(TransferMethod):
    name = "lora"
    lr_factor = 10.0
    options = (LoRAOptions,)
    needs_extra = ("peft", "lora")

    def prepare(self, model: DiT, options: tuple[Options, ...], start: Start) -> None:
        chosen = of_kind(options, LoRAOptions)
        apply_lora(model, rank=chosen.rank, targets=chosen.targets, seed=start.seed)

    def merge(self, model: DiT) -> DiT:
        return merge_lora(model)
