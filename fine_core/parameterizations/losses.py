"""Training losses of a denoiser under any parameterization."""

from __future__ import annotations

import torch
from torch import Tensor

from fine_core.denoiser import Conditions, Denoiser, rows_of
from fine_core.parameterizations.base import Parameterization


def training_losses(
    parameterization: Parameterization,
    denoiser: Denoiser,
    x0: Tensor,
    t: Tensor,
    conditions: Conditions,
    noise: Tensor,
    *,
    weights: Tensor | float = 1.0,
    teacher: Denoiser | None = None,
    distilled: Tensor | None = None,
) -> Tensor:
    """Loss of each sample (N,) for images and noise (N, C, H, H) at times (N,), with the weights (N,) of their noise levels.

    For samples where `distilled` (N,), a mask on the CPU, is true the loss is the mean squared distance to the frozen teacher's
    output on the same x_t instead (the KD arm of arXiv 2406.00773).
    """
    x_t = parameterization.corrupt(x0, t, noise)
    seen, time = parameterization.network_input(x_t, t), parameterization.network_time(t)
    output = denoiser(seen, time, conditions)
    losses = parameterization.losses(output, x0=x0, x_t=x_t, t=t, noise=noise, weights=weights)
    if distilled is None or not distilled.any():
        return losses
    places = distilled.nonzero().squeeze(1).to(x0.device, non_blocking=True)
    with torch.no_grad():
        teacher_output = teacher(seen[places], time[places], rows_of(conditions, places))
    distance = (output[places] - teacher_output).square().mean(dim=(1, 2, 3))
    if isinstance(weights, Tensor):
        distance = weights[places] * distance
    return losses.index_copy(0, places, distance)
