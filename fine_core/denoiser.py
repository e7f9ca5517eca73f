"""Denoisers: networks as functions of noisy images, network times and conditions.

A condition is a tensor with one row per sample, under the keyword that the network's `forward` takes it by: the label is one
condition, a control image another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

LABEL = "y"  # the label's keyword in `DiT.forward`

Conditions = Mapping[str, Tensor]
Denoiser = Callable[[Tensor, Tensor, Conditions], Tensor]


def denoiser_of(model: nn.Module, **options: Any) -> Denoiser:
    """A model as a denoiser. `options` are further keyword arguments of its forward pass."""
    return lambda x, t, conditions: model(x, t, **conditions, **options)


def within_memory(denoiser: Denoiser) -> Denoiser:
    """A denoiser that, out of memory, takes half as many samples at once from then on. Its outputs differ by rounding alone."""
    at_once: int | None = None

    def denoise(x: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        nonlocal at_once
        while True:
            size = len(x) if at_once is None else min(len(x), at_once)
            try:
                if size == len(x):
                    return denoiser(x, t, conditions)
                parts = [slice(first, first + size) for first in range(0, len(x), size)]
                return torch.cat([denoiser(x[part], t[part], rows_of(conditions, part)) for part in parts])
            except torch.OutOfMemoryError:
                if size <= 1:
                    raise
                at_once = -(-size // 2)
            torch.cuda.empty_cache()

    return denoise


def rows_of(conditions: Conditions, rows: Tensor | slice) -> dict[str, Tensor]:
    """The conditions of some of the samples."""
    return {name: condition[rows] for name, condition in conditions.items()}


def without_label(conditions: Conditions, null_label: int) -> dict[str, Tensor]:
    """The conditions with the null label in the place of every label; all others stay."""
    return {**conditions, LABEL: torch.full_like(conditions[LABEL], null_label)}
