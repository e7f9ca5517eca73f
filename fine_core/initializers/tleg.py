"""TLEG: a block's tensors grow linearly with its depth, theta_l = B + (l / L) A for l = 0 .. L-1.

Xia et al., "Transformer as Linear Expansion of Learngene", AAAI 2024, arXiv 2312.05614, equation 1. For ViT it distils from a
teacher; here (A, B) are trained by the denoising loss, as FINE's learngene is, and A starts at a tenth of DiT's own
initialization (both ours).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fine_core.initializers.depth_basis import DepthBasis

SLOPE_SCALE = 0.1


@dataclass(frozen=True, kw_only=True)
class Tleg(DepthBasis):
    """Two templates: B and A. The last layer does not reach B + A, as in the published code."""

    def coefficients(self, depth: int) -> Tensor:
        return torch.stack([torch.ones(depth), torch.arange(depth) / depth], dim=1)

    def scales(self) -> tuple[float, ...]:
        return (1.0, SLOPE_SCALE)
