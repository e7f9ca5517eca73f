"""Kaiming-normal weights in the blocks, in the place of DiT's Xavier ones.

He et al., "Delving Deep into Rectifiers", arXiv 1502.01852, equation 10. That it is used so for DiT is ours: FINE's benchmark
(arXiv 2409.19289, section 4) names a He initialization and does not say of which tensors.
"""

from __future__ import annotations

import math

import torch

from fine_core.dit import DiT
from fine_core.initializers.matrices import BLOCK_MATRICES
from fine_core.randomness import stream_generator


@torch.no_grad()
def he_(model: DiT, *, seed: int) -> DiT:
    """Draw the weights of qkv, proj, fc1 and fc2 of every block from N(0, 2 / inputs), in place; returns the model.

    All else stays as it is. With DiT's own zero adaLN and final layer every block is still the identity and the output 0.
    """
    generator = stream_generator(seed, "he")
    for block in model.blocks:
        for matrix, place in BLOCK_MATRICES.items():
            if matrix != "adaLN":
                weight = block.get_submodule(place).weight  # (out, in)
                weight.copy_(torch.randn(weight.shape, generator=generator) * math.sqrt(2 / weight.shape[1]))
    return model
