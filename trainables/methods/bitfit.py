"""BitFit: biases and the label table."""

from __future__ import annotations

from fine_core.dit import DiT
from fine_core.transfer.bitfit import apply_bitfit
from trainables.methods.base import Start, TransferMethod
from trainables.specs.options import Options


class BitFit(TransferMethod):
    name = "bitfit"
    lr_factor = 10.0

    def prepare(self, model: DiT, options: tuple[Options, ...], start: Start) -> None:
        apply_bitfit(model)
