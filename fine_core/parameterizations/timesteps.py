"""Drawing timesteps from probabilities."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_timesteps(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Timesteps (N,) from probabilities (T,): inverts the cumulative sum at `uniform` (N,) in [0, 1)."""
    cumulative = probabilities.cumsum(0)
    drawn = torch.searchsorted(cumulative, uniform.double() * cumulative[-1], right=True)
    return drawn.clamp(max=len(probabilities) - 1)
