"""Conversion of images in [-1, 1] to bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1] to bytes: clamp(127.5 x + 128), as the public DiT code does."""
    return (127.5 * x + 128.0).clamp(0, 255).to(torch.uint8)
