"""DiffFit: biases, label table and scales. arXiv 2304.06648: ten times the learning rate of pre-training."""

from __future__ import annotations

from fine_core.dit import DiT
from fine_core.transfer.difffit import apply_difffit, fold_scales
from trainables.methods.base import MethodOptions, TransferMethod


class DiffFit(TransferMethod):
    name = "difffit"
    lr_factor = 10.0
    uses_scales = True

    def prepare(self, model: DiT, options: MethodOptions) -> None:
        apply_difffit(model, span=options.gamma_span)

    def merge(self, model: DiT) -> DiT:
        return fold_scales(model)
