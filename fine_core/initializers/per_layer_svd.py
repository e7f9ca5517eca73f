"""Factors of their own for every layer: W_l = U_l diag(sigma_l) V_l^T, the ablation "without shared factors" of FINE
(arXiv 2409.19289, section 4.3). Which source layer a target's layer takes is stated nowhere; the nearest is ours.

Shapes: L depth of the source, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fine_core.dit import DiT, DiTConfig, ModelSize
from fine_core.initializers.inherited import Inheritance, Inherited, Tensors, other_width
from fine_core.initializers.matrices import BLOCK_MATRICES, POSITIONS, outer_tensors
from fine_core.initializers.rebuilt import RebuiltDiT

LEFT, SIGMA, RIGHT, BIAS = "left.", "sigma.", "right.", "bias."


def nearest_layers(source_depth: int, depth: int) -> list[int]:
    """The source layer of each of `depth` layers, at the same share of the way; a single layer takes the middle one."""
    if depth == 1:
        return [(source_depth - 1) // 2]
    return [round(layer * (source_depth - 1) / (depth - 1)) for layer in range(depth)]


class PerLayerFactorizedDiT(RebuiltDiT):
    """Fixed factors (L, out, R), (L, in, R) and biases (L, out) of every matrix type, and a trainable sigma (L, R)."""

    def __init__(self, config: DiTConfig, tensors: Tensors) -> None:
        super().__init__(config)
        self.sigma = nn.ParameterDict({m: nn.Parameter(tensors[SIGMA + m].clone()) for m in BLOCK_MATRICES})
        fixed = {name: tensor for name, tensor in tensors.items() if not name.startswith(SIGMA)}
        self.fixed = nn.ParameterDict(
            {name.replace(".", "/"): nn.Parameter(tensor.clone(), requires_grad=False) for name, tensor in fixed.items()}
        )

    def dense_state(self, width: int | None = None) -> Tensors:
        fixed = {name.replace("/", "."): tensor for name, tensor in self.fixed.items()}
        state = {n: t for n, t in fixed.items() if not n.startswith((LEFT, RIGHT, BIAS))} | {POSITIONS: self.positions()}
        for m, place in BLOCK_MATRICES.items():
            with torch.autocast(self.sigma[m].device.type, enabled=False):  # fp32 in any precision
                weights = (fixed[LEFT + m] * self.sigma[m].unsqueeze(1)) @ fixed[RIGHT + m].mT  # (L, out, in)
            for layer, (weight, bias) in enumerate(zip(weights, fixed[BIAS + m], strict=True)):
                state |= {f"blocks.{layer}.{place}.weight": weight, f"blocks.{layer}.{place}.bias": bias}
        return state


@dataclass(frozen=True, kw_only=True)
class PerLayerSvd(Inheritance):
    """A truncated singular value decomposition of every layer's matrices. `rank` 0: the width.

    At the width it stores more than the dense model; at width / L as much as FINE's shared factors.
    """

    rank: int = 0

    def refusal(self, source: ModelSize, target: ModelSize) -> str | None:
        return other_width(source, target)

    def keep(self, ancestor: DiT) -> Tensors:
        state, size = ancestor.state_dict(), ancestor.config.size
        rank = self.rank or size.width
        kept = outer_tensors(state)
        for m, place in BLOCK_MATRICES.items():
            weights, biases = (
                torch.stack([state[f"blocks.{layer}.{place}.{part}"] for layer in range(size.depth)])
                for part in ("weight", "bias")
            )
            left, sigma, right = torch.linalg.svd(weights, full_matrices=False)
            parts = {LEFT: left[..., :rank], SIGMA: sigma[..., :rank], RIGHT: right[:, :rank].mT, BIAS: biases}
            kept |= {f"{part}{m}": tensor.contiguous() for part, tensor in parts.items()}
        return kept

    def _start(self, inherited: Inherited, target: DiTConfig, seed: int) -> PerLayerFactorizedDiT:
        layers = torch.tensor(nearest_layers(inherited.config.size.depth, target.size.depth))
        of_layers = (LEFT, SIGMA, RIGHT, BIAS)
        tensors = {n: t[layers] if n.startswith(of_layers) else t for n, t in inherited.tensors.items()}
        return PerLayerFactorizedDiT(target, tensors)


def rank_matched_to_shared_factors(source: ModelSize) -> int:
    """The rank at which all layers' factors take as many bytes as factors shared by all layers at rank = width."""
    return max(1, source.width // source.depth)
