"""A bottleneck adapter at every block's MLP, parallel or sequential."""

from __future__ import annotations

from fine_core.dit import DiT
from fine_core.transfer.adapters import apply_adapter
from trainables.methods.base import Start, TransferMethod
from trainables.specs.options import Options


class AdapterTuning(TransferMethod):
    lr_factor = 10.0
    mergeable = False  # there is a nonlinearity inside

    def __init__(self, name: str, *, parallel: bool) -> None:
        self.name, self.parallel = name, parallel

    def prepare(self, model: DiT, options: tuple[Options, ...], start: Start) -> None:
        apply_adapter(model, parallel=self.parallel, seed=start.seed)
