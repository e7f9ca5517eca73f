"""Low frequencies: an ancestor's matrices as waves over depth and width, of which the slow ones start any size.

FRONT, arXiv 2603.07523: a 3-D discrete cosine transform over layers x outputs x inputs of each matrix type, cut to low
frequencies, with no training; any depth and any width. For DiT, the transform within each of q, k, v and of adaLN's six chunks,
what is done outside the blocks and the scale of resampled waves are ours. Shapes: L depth, K frequencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from fine_core.dit import MLP_RATIO, DiT, DiTConfig, ModelSize
from fine_core.initializers.inherited import Inheritance, Inherited, Tensors, fresh_model, other_head_size
from fine_core.initializers.matrices import BLOCK_TENSORS, POSITIONS, outer_tensors
from fine_core.initializers.width import Axes, dense_axes

FREQUENCIES = "frequencies."
DEPTH_AXIS: Axes = ((0, "depth", 1),)


def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II of n points (n, n), float64: row k is the wave of k half-periods over the points."""
    points, waves = torch.arange(n, dtype=torch.float64), torch.arange(n, dtype=torch.float64)[:, None]
    matrix = math.sqrt(2 / n) * torch.cos(math.pi / n * (points + 0.5) * waves)
    matrix[0] = math.sqrt(1 / n)
    return matrix


def number_kept(share: float, n: int) -> int:
    """How many of n frequencies a share of them is; at least 1."""
    return max(1, round(share * n))


def _points(size: ModelSize, index_set: str) -> int:
    return {"depth": size.depth, "hidden": MLP_RATIO * size.width}.get(index_set, size.width)


def _mapped(tensor: Tensor, dim: int, chunks: int, matrix: Tensor) -> Tensor:
    """`matrix` (m, n) applied along one dimension to each of its chunks of n; they become chunks of m."""
    parts = tensor.to(matrix.dtype).unflatten(dim, (chunks, -1))
    mapped = torch.tensordot(parts, matrix.to(tensor.device), dims=([dim + 1], [1])).movedim(-1, dim + 1)
    return mapped.flatten(dim, dim + 1)


def low_frequencies(tensor: Tensor, axes: Axes, share: float) -> Tensor:
    """The first frequencies of a tensor along its axes, each chunk apart, float64."""
    for dim, _, chunks in axes:
        n = tensor.shape[dim] // chunks
        tensor = _mapped(tensor, dim, chunks, dct_matrix(n)[: number_kept(share, n)])
    return tensor


def from_frequencies(coefficients: Tensor, axes: Axes, source: ModelSize, target: ModelSize) -> Tensor:
    """The tensor of the target's size, float64. A wave keeps its amplitude, and its half-periods over the whole axis."""
    for dim, index_set, chunks in axes:
        kept, n = coefficients.shape[dim] // chunks, _points(target, index_set)
        waves = dct_matrix(n)[:kept]
        waves = pad(waves, (0, 0, 0, kept - len(waves)))  # (K, n); n points have no more than n waves
        coefficients = _mapped(coefficients, dim, chunks, waves.T * math.sqrt(n / _points(source, index_set)))
    return coefficients


@dataclass(frozen=True, kw_only=True)
class Frequency(Inheritance):
    """Keeps `kept_share` of the frequencies of each axis (depth, outputs, inputs) of every block tensor.

    Embedders and final layer are kept whole, as by all methods here: copied at the source's width, resampled at others.
    Raises ValueError unless 0 < kept_share <= 1.
    """

    kept_share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.kept_share <= 1:
            raise ValueError(f"kept_share is {self.kept_share}; it must be above 0 and at most 1")

    def refusal(self, source: ModelSize, target: ModelSize) -> str | None:
        return other_head_size(source, target)

    def keep(self, ancestor: DiT) -> Tensors:
        state, depth = ancestor.state_dict(), len(ancestor.blocks)
        kept = outer_tensors(state)
        for name in BLOCK_TENSORS:
            tensors = [state[f"blocks.{layer}.{name}"] for layer in range(depth)]
            axes = dense_axes(f"blocks.0.{name}")
            # Layer by layer, so that never all layers of a matrix type are in memory in float64.
            layers = torch.stack([low_frequencies(tensor, axes, self.kept_share) for tensor in tensors])
            kept[FREQUENCIES + name] = low_frequencies(layers, DEPTH_AXIS, self.kept_share).to(tensors[0].dtype).contiguous()
        return kept

    def _start(self, inherited: Inherited, target: DiTConfig, seed: int) -> DiT:
        """Everything is inherited: `seed` changes nothing."""
        source, size = inherited.config.size, target.size
        model = fresh_model(target, seed)
        new = {POSITIONS: model.pos_embed}
        for name, tensor in inherited.tensors.items():
            if name.startswith(FREQUENCIES):
                own = name.removeprefix(FREQUENCIES)
                for layer, waves in enumerate(from_frequencies(tensor, DEPTH_AXIS, source, size)):
                    place = f"blocks.{layer}.{own}"
                    new[place] = from_frequencies(waves, dense_axes(place), source, size).to(tensor.dtype)
            elif size.width == source.width:
                new[name] = tensor
            else:
                axes = dense_axes(name)
                new[name] = from_frequencies(low_frequencies(tensor, axes, 1.0), axes, source, size).to(tensor.dtype)
        model.load_state_dict(new)  # copies
        return model
