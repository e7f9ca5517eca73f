"""Weight selection: a smaller model takes evenly spaced elements of a larger one's tensors, and its first blocks.

Xu et al., "Initializing Models with Larger Ones", ICLR 2024, arXiv 2311.18823. The published selection treats every
dimension of every tensor by itself and so cuts through attention heads; the one that keeps heads whole and the channels of all
tensors consistent is ours, as are evenly spaced blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fine_core.dit import MLP_RATIO, DiT, DiTConfig, ModelSize
from fine_core.initializers.inherited import Inheritance, Inherited, Tensors, fresh_model, other_head_size
from fine_core.initializers.matrices import POSITIONS, all_but_positions
from fine_core.initializers.width import RowChoice, dense_axes, select_rows

SELECTIONS = ("official", "heads")
BLOCK_CHOICES = ("first", "uniform")


def evenly_spaced(total: int, number: int) -> Tensor:
    """`number` of the indices 0 .. total-1 (number,), as the paper's code takes them."""
    if total % number == 0:
        return torch.arange(number) * (total // number)
    return torch.linspace(0, total - 1, number).round().long()


def spaced_rows(source: ModelSize, target: ModelSize) -> RowChoice:
    """Evenly spaced residual channels, whole heads and hidden units."""
    heads = evenly_spaced(source.num_heads, target.num_heads)
    return RowChoice(
        residual=evenly_spaced(source.width, target.width),
        heads=(heads[:, None] * source.head_dim + torch.arange(source.head_dim)).flatten(),
        hidden=evenly_spaced(MLP_RATIO * source.width, MLP_RATIO * target.width),
    )


def _spaced_in_every_dimension(tensor: Tensor, shape: torch.Size) -> Tensor:
    for dim, number in enumerate(shape):
        tensor = tensor.index_select(dim, evenly_spaced(tensor.shape[dim], number).to(tensor.device))
    return tensor


@dataclass(frozen=True, kw_only=True)
class WeightSelection(Inheritance):
    """Keeps the whole ancestor, and selects when a size starts.

    `selection` "official": evenly spaced in every dimension of every tensor, as published: the rows of q, k and v count as one
    dimension, and so do adaLN's six chunks. "heads": the same residual channels and hidden units everywhere and whole heads,
    within each of q, k and v and each chunk. `blocks` "first": a target takes the first blocks; "uniform": evenly spaced ones.
    Raises ValueError for other words.
    """

    selection: str = "official"
    blocks: str = "first"

    def __post_init__(self) -> None:
        if self.selection not in SELECTIONS:
            raise ValueError(f"unknown selection {self.selection!r}; choose one of {', '.join(SELECTIONS)}")
        if self.blocks not in BLOCK_CHOICES:
            raise ValueError(f"unknown choice of blocks {self.blocks!r}; choose one of {', '.join(BLOCK_CHOICES)}")

    def refusal(self, source: ModelSize, target: ModelSize) -> str | None:
        if target.depth > source.depth:
            return f"it makes no more layers than the source's {source.depth}"
        if target.width > source.width:
            return f"it makes no width above the source's {source.width}"
        return other_head_size(source, target)

    def keep(self, ancestor: DiT) -> Tensors:
        return all_but_positions(ancestor.state_dict())

    def _start(self, inherited: Inherited, target: DiTConfig, seed: int) -> DiT:
        """Everything is inherited: `seed` changes nothing."""
        source, size = inherited.config.size, target.size
        spaced = self.blocks == "uniform"
        layers = evenly_spaced(source.depth, size.depth).tolist() if spaced else list(range(size.depth))
        rows, model, new = spaced_rows(source, size), fresh_model(target, seed), {}
        for name, own in model.state_dict().items():
            parts = name.split(".")
            if parts[0] == "blocks":
                parts[1] = str(layers[int(parts[1])])
            if name == POSITIONS:
                new[name] = own
            elif self.selection == "official":
                new[name] = _spaced_in_every_dimension(inherited.tensors[".".join(parts)], own.shape)
            else:
                new[name] = select_rows(inherited.tensors[".".join(parts)], dense_axes(name), rows)
        model.load_state_dict(new)  # copies
        return model
