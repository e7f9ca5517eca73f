"""LiGO: a small model grown in depth and width by linear maps, which are trained alone before the grown model is.

Wang et al., "Learning to Grow Pretrained Models for Efficient Transformer Training", arXiv 2303.00980, for BERT and ViT:
W'_l = sum_j w_(l,j) B W_j A^T. Ours for DiT: the width maps of widening.py (one for the heads of q, k and v together; A is tied
to the B of the layer before, divided by the number of copies), adaLN by the residual map in each chunk, and no noise at the
source's own depth, where no layer has a copy that it must become different from.
Shapes: L depth of the source, M of the target.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fine_core.dit import DiT, DiTConfig, ModelSize
from fine_core.initializers.inherited import Inheritance, Inherited, Tensors, other_head_size
from fine_core.initializers.matrices import BLOCK_MATRICES, POSITIONS, all_but_positions
from fine_core.initializers.rebuilt import RebuiltDiT
from fine_core.initializers.widening import WidthMaps, widen


def stacked_depth(source_depth: int, depth: int, *, noise: float, generator: torch.Generator) -> Tensor:
    """w (M, L): layer l takes the source's layer l mod L, plus U(0, noise) of every layer if M > L. Rows sum to 1."""
    weights = torch.eye(source_depth)[torch.arange(depth) % source_depth]
    if depth > source_depth:
        weights = weights + noise * torch.rand(weights.shape, generator=generator)
    return weights / weights.sum(dim=1, keepdim=True)


class GrownDiT(RebuiltDiT):
    """Fixed tensors of a small dense DiT, and trainable coefficients: w (M, L) for each of the five block matrices, and the
    width maps. A matrix and its bias have the same w. Outside the blocks there are only width maps.
    """

    def __init__(self, config: DiTConfig, small: Tensors, depth: Tensors, maps: WidthMaps) -> None:
        super().__init__(config)
        self.small = nn.ParameterDict(
            {name.replace(".", "/"): nn.Parameter(tensor.clone(), requires_grad=False) for name, tensor in small.items()}
        )
        self.depth = nn.ParameterDict({m: nn.Parameter(weights) for m, weights in depth.items()})
        self.maps = maps

    def dense_state(self, width: int | None = None) -> Tensors:
        maps, state = self.maps.full(), {POSITIONS: self.positions()}
        names = {key: key.replace("/", ".") for key in self.small}
        # Widening is linear: widening L layers and mixing them costs less than widening M mixtures.
        wide = {name: widen(self.small[key], name, maps) for key, name in names.items()}
        state |= {name: tensor for name, tensor in wide.items() if not name.startswith("blocks.")}
        for m, place in BLOCK_MATRICES.items():
            for part in ("weight", "bias"):
                layers = torch.stack([wide[f"blocks.{j}.{place}.{part}"] for j in range(self.depth[m].shape[1])])
                with torch.autocast(layers.device.type, enabled=False):  # the mixtures are fp32 in any precision
                    mixtures = torch.tensordot(self.depth[m], layers, dims=1)  # (M, ...)
                state |= {f"blocks.{layer}.{place}.{part}": tensor for layer, tensor in enumerate(mixtures)}
        return state


@dataclass(frozen=True, kw_only=True)
class Ligo(Inheritance):
    """Keeps a whole small model, and grows it.

    `depth_noise`: upper end of the uniform noise on the depth coefficients. `width_noise`: standard deviation of the normal
    noise on the rows of the width maps that make new channels. Raises ValueError if one is negative.
    """

    depth_noise: float = 0.03
    width_noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("depth_noise", "width_noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")

    def refusal(self, source: ModelSize, target: ModelSize) -> str | None:
        if target.depth < source.depth or target.width < source.width:
            return f"it only grows: it makes sizes of at least {source.name}"
        return other_head_size(source, target)

    def keep(self, ancestor: DiT) -> Tensors:
        return all_but_positions(ancestor.state_dict())

    def _start(self, inherited: Inherited, target: DiTConfig, seed: int) -> GrownDiT:
        """`seed` draws the noise."""
        source, size = inherited.config.size, target.size
        generator = torch.Generator().manual_seed(seed)
        depth = {
            m: stacked_depth(source.depth, size.depth, noise=self.depth_noise, generator=generator) for m in BLOCK_MATRICES
        }
        maps = WidthMaps(source, size, noise=self.width_noise, generator=generator)
        return GrownDiT(target, inherited.tensors, depth, maps)
