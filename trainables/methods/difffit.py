"""DiffFit: biases, label table and scales. arXiv 2304.06648: ten times the learning rate of pre-training."""

from __future__ import annotations

from typing import ClassVar

from fine_core.dit import DiT
from fine_core.transfer.difffit import DEFAULT_SPAN, apply_difffit, fold_scales
from trainables.methods.base import Start, TransferMethod
from trainables.specs.base import check
from trainables.specs.identity import spec
from trainables.specs.options import Choice, Options, of_kind, option


@spec("difffit")
class DiffFitOptions(Options):
    group: ClassVar[str] = "difffit"
    gamma_span: float = option(
        DEFAULT_SPAN,
        "share of the blocks that have scale factors, counted from the first",
        search=Choice(name="gamma_span", values=(0.0, 0.25, 0.5, 0.75, 1.0)),
        changes_bytes=True,
        old_names=("--gamma-span",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.gamma_span <= 1, f"gamma_span is {self.gamma_span}; it must be between 0 and 1")


class DiffFit(TransferMethod):
    name = "difffit"
    lr_factor = 10.0
    options = (DiffFitOptions,)

    def prepare(self, model: DiT, options: tuple[Options, ...], start: Start) -> None:
        apply_difffit(model, span=of_kind(options, DiffFitOptions).gamma_span)

    def merge(self, model: DiT) -> DiT:
        return fold_scales(model)
