"""Wider models from a narrower one: linear maps from its channels to more of them, copies at first and trainable if wanted.

Copies of a channel keep the function if the tensors that consume it are divided by the number of its copies (Net2Net, Chen et
al., arXiv 1511.05641). Three index sets have a map each, used everywhere as in width.py: residual channels, channels of whole
heads, hidden units of the MLP. Ours: channels are copied in turn instead of at random, q, k and v share the map of heads, and
the maps of consumers stay divided by the number of copies while they are trained.
Shapes: n channels of an index set in the source, m in the target.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fine_core.dit import MLP_RATIO, ModelSize
from fine_core.initializers.inherited import other_head_size
from fine_core.initializers.width import WIDTH_AXES, Axes, dense_axes

LABEL_TABLE = "y_embedder.embedding_table.weight"


def width_axes(name: str) -> Axes:
    """The width axes of a tensor by its name in FINE (left.*, right.*, bias.*, outer.*) or in a dense DiT."""
    return WIDTH_AXES[name] if name in WIDTH_AXES else dense_axes(name)


def is_input(name: str, dim: int) -> bool:
    """Whether a tensor consumes the channels along a width axis, instead of making them."""
    # A row of a right factor is a column of the matrix. The label table has its embeddings as rows.
    return name.startswith("right.") or (dim == 1 and not name.endswith(LABEL_TABLE))


def check_wider(source: ModelSize, target: ModelSize) -> None:
    """Raises ValueError unless `target` is at least as wide as `source` and has heads of the same size."""
    if target.width < source.width:
        raise ValueError(f"width {target.width} is narrower than the source's {source.width}; it must be at least that")
    if reason := other_head_size(source, target):
        raise ValueError(reason)


def _copied(target: int, source: int) -> Tensor:
    """The map (m, n) whose row i takes the source's channel i mod n."""
    return torch.eye(source)[torch.arange(target) % source]


def copies(source: ModelSize, target: ModelSize) -> dict[str, Tensor]:
    """A map (m, n) for each index set: the source's channels, then copies of them in turn. Raises as `check_wider`."""
    check_wider(source, target)
    # A width is a whole number of heads: the copies of channels in turn are copies of heads in turn.
    ratios = {"residual": 1, "heads": 1, "hidden": MLP_RATIO}
    return {index_set: _copied(ratio * target.width, ratio * source.width) for index_set, ratio in ratios.items()}


def _for_inputs(matrix: Tensor) -> Tensor:
    """The map of those that consume the channels: divided by how many copies there are of each."""
    target, source = matrix.shape
    times, more = divmod(target, source)
    numbers = torch.full((source,), times, device=matrix.device)
    numbers[:more] += 1
    return matrix / numbers


def widen(tensor: Tensor, name: str, maps: Mapping[str, Tensor]) -> Tensor:
    """One tensor at the target's width, by its name in FINE or in a dense DiT; differentiable in the tensor and the maps.

    maps: (m, n) by index set. Channels of an index set without a map stay as they are.
    """
    for dim, index_set, chunks in width_axes(name):
        if index_set not in maps:
            continue
        matrix = _for_inputs(maps[index_set]) if is_input(name, dim) else maps[index_set]
        parts = tensor.unflatten(dim, (chunks, -1))
        with torch.autocast(tensor.device.type, enabled=False):  # fp32 in any precision
            parts = torch.tensordot(parts, matrix, dims=([dim + 1], [1])).movedim(-1, dim + 1)
        tensor = parts.flatten(dim, dim + 1)
    return tensor


class WidthMaps(nn.Module):
    """Maps that start as `copies`: their upper rows, the source's own channels, are fixed, and the lower rows trainable.

    noise: standard deviation of what is drawn from `generator` and added to the lower rows. At the source's width there is
    nothing to train and no map. Raises as `check_wider`.
    """

    def __init__(self, source: ModelSize, target: ModelSize, *, noise: float, generator: torch.Generator) -> None:
        super().__init__()
        self.lower = nn.ParameterDict()
        for index_set, matrix in copies(source, target).items():
            added = matrix[matrix.shape[1] :]  # (m - n, n)
            if len(added):
                self.lower[index_set] = nn.Parameter(added + noise * torch.randn(added.shape, generator=generator))

    def full(self) -> dict[str, Tensor]:
        """The maps (m, n) by index set, for `widen`."""
        return {
            index_set: torch.cat([torch.eye(lower.shape[1], device=lower.device, dtype=lower.dtype), lower])
            for index_set, lower in self.lower.items()
        }
