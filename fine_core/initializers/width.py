"""Narrower models from a wider learngene: the choice of rows to keep, consistent over all tensors.

This extends FINE (arXiv 2409.19289): the paper has no experiment with widths.
Three index sets are chosen once and used everywhere: residual channels, whole attention heads, hidden units of the MLP.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fine_core.dit import MLP_RATIO, ModelSize
from fine_core.initializers.matrices import BLOCK_MATRICES

# Tensor -> its axes that depend on the width: (dimension, index set, number of equal chunks along the dimension).
Axes = tuple[tuple[int, str, int], ...]
WIDTH_AXES: dict[str, Axes] = {
    "left.qkv": ((0, "heads", 3),),
    "right.qkv": ((0, "residual", 1),),
    "bias.qkv": ((0, "heads", 3),),
    "left.o": ((0, "residual", 1),),
    "right.o": ((0, "heads", 1),),
    "bias.o": ((0, "residual", 1),),
    "left.in": ((0, "hidden", 1),),
    "right.in": ((0, "residual", 1),),
    "bias.in": ((0, "hidden", 1),),
    "left.out": ((0, "residual", 1),),
    "right.out": ((0, "hidden", 1),),
    "bias.out": ((0, "residual", 1),),
    "left.adaLN": ((0, "residual", 6),),
    "right.adaLN": ((0, "residual", 1),),
    "bias.adaLN": ((0, "residual", 6),),
    "outer.x_embedder.proj.weight": ((0, "residual", 1),),
    "outer.x_embedder.proj.bias": ((0, "residual", 1),),
    "outer.t_embedder.mlp.0.weight": ((0, "residual", 1),),
    "outer.t_embedder.mlp.0.bias": ((0, "residual", 1),),
    "outer.t_embedder.mlp.2.weight": ((0, "residual", 1), (1, "residual", 1)),
    "outer.t_embedder.mlp.2.bias": ((0, "residual", 1),),
    "outer.y_embedder.embedding_table.weight": ((1, "residual", 1),),
    "outer.final_layer.linear.weight": ((1, "residual", 1),),
    "outer.final_layer.linear.bias": (),
    "outer.final_layer.adaLN_modulation.1.weight": ((0, "residual", 2), (1, "residual", 1)),
    "outer.final_layer.adaLN_modulation.1.bias": ((0, "residual", 2),),
}


_MATRICES = {place: matrix for matrix, place in BLOCK_MATRICES.items()}


def dense_axes(name: str) -> Axes:
    """The axes of a dense DiT's tensor that depend on the width, as in `WIDTH_AXES`."""
    if not name.startswith("blocks."):
        return WIDTH_AXES[f"outer.{name}"]
    place, part = name.split(".", 2)[2].rsplit(".", 1)
    matrix = _MATRICES[place]
    if part == "bias":
        return WIDTH_AXES[f"bias.{matrix}"]
    columns = tuple((1, index_set, chunks) for _, index_set, chunks in WIDTH_AXES[f"right.{matrix}"])
    return WIDTH_AXES[f"left.{matrix}"] + columns  # a row of a factor is a row or a column of the matrix


@dataclass(frozen=True, kw_only=True)
class RowChoice:
    """Sorted indices to keep of each index set."""

    residual: Tensor
    heads: Tensor  # channels of the kept heads
    hidden: Tensor


def check_narrower(source: ModelSize, target: ModelSize) -> None:
    """Raises ValueError unless `target` is at most as wide as `source` and has heads of the same size."""
    if target.width > source.width:
        raise ValueError(f"width {target.width} is wider than the learngene's {source.width}; it must be at most that")
    if target.head_dim != source.head_dim:
        raise ValueError(f"head_dim {target.head_dim} differs from the learngene's {source.head_dim}; heads keep their size")


def prefix_rows(source: ModelSize, target: ModelSize, device: torch.device | str = "cpu") -> RowChoice:
    """The first rows of every index set, which nested pre-training trains as a model of their own."""
    check_narrower(source, target)
    hidden = torch.arange(MLP_RATIO * target.width, device=device)
    channels = hidden[: target.width]
    return RowChoice(residual=channels, heads=channels, hidden=hidden)


def ranked_rows(source: ModelSize, target: ModelSize, tensors: dict[str, Tensor]) -> RowChoice:
    """The rows of largest norm, summed over all tensors that share an index set; heads are ranked as wholes."""
    check_narrower(source, target)
    energy = {"residual": torch.zeros(source.width), "heads": torch.zeros(source.width)}
    energy["hidden"] = torch.zeros(MLP_RATIO * source.width)
    for name, tensor in tensors.items():
        for dim, index_set, chunks in WIDTH_AXES[name]:
            rows = tensor.detach().cpu().movedim(dim, 0).reshape(chunks, len(energy[index_set]), -1)
            energy[index_set] += rows.square().sum(dim=(0, 2))
    per_head = energy["heads"].reshape(source.num_heads, source.head_dim).sum(dim=1)
    heads = per_head.topk(target.num_heads).indices.sort().values
    channels_of_heads = (heads[:, None] * source.head_dim + torch.arange(source.head_dim)).flatten()
    return RowChoice(
        residual=energy["residual"].topk(target.width).indices.sort().values,
        heads=channels_of_heads,
        hidden=energy["hidden"].topk(MLP_RATIO * target.width).indices.sort().values,
    )


def select_rows(tensor: Tensor, axes: Axes, rows: RowChoice) -> Tensor:
    """The chosen rows of one tensor along all its width axes (differentiable)."""
    for dim, index_set, chunks in axes:
        index = getattr(rows, index_set).to(tensor.device)
        stride = tensor.shape[dim] // chunks
        offsets = torch.arange(chunks, device=tensor.device)[:, None] * stride
        tensor = tensor.index_select(dim, (offsets + index).flatten())
    return tensor
