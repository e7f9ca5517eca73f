"""Toy: the final layer and a share of the last blocks move."""

from __future__ import annotations

from typing import ClassVar

from fine_core.dit import DiT
from fine_core.transfer.delta import train_only
from trainables.methods.base import Start, TransferMethod
from trainables.specs.identity import spec
from trainables.specs.options import Choice, Options, of_kind, option


@spec("toy-last")
class ToyOptions(Options):
    group: ClassVar[str] = "toy-last"
    share: float = option(
        0.5,
        "share of the blocks that move",
        search=Choice(name="share", values=(0.0, 0.5, 1.0)),
        changes_bytes=True,
        label="{}",
    )


class ToyLast(TransferMethod):
    name = "toy-last"
    options = (ToyOptions,)

    def prepare(self, model: DiT, options: tuple[Options, ...], start: Start) -> None:
        depth = model.config.size.depth
        first = depth - round(of_kind(options, ToyOptions).share * depth)
        moving = ("final_layer.", *(f"blocks.{index}." for index in range(first, depth)))
        train_only(model, lambda name: name.startswith(moving))
