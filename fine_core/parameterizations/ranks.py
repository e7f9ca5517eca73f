"""Ranks: the place u in (0, 1) of a noise level in the training distribution, from the data side to the noise side.

Probabilities and weights over ranks are tables of T equal levels; level i holds the ranks from i/T to (i+1)/T.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_LEVELS = 1000  # as many as DDPM has timesteps: there a level is a timestep
BORDER = 1e-6  # of a level: ranks keep this distance from its ends, so that rounding moves none to its neighbour


def level_ranks(num_levels: int = NUM_LEVELS) -> Tensor:
    """The ranks (T,) in the middle of all levels, float64."""
    return (torch.arange(num_levels, dtype=torch.float64) + 0.5) / num_levels


def levels_of(ranks: Tensor, num_levels: int = NUM_LEVELS) -> Tensor:
    """The levels (N,), 0 to `num_levels` - 1, of ranks (N,)."""
    return (ranks * num_levels).long()


def draw_ranks(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Ranks (N,), float64, for probabilities (T,) of levels: inverts the distribution function at `uniform` (N,) in [0, 1)."""
    cumulative = probabilities.cumsum(0)
    drawn = uniform.double() * cumulative[-1]
    level = torch.searchsorted(cumulative, drawn, right=True).clamp(max=len(probabilities) - 1)
    within = 1 - (cumulative[level] - drawn) / probabilities[level]
    return (level + within.clamp(BORDER, 1 - BORDER)) / len(probabilities)
