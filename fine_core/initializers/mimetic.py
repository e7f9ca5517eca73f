"""Mimetic initialization: attention weights whose products look like those of pre-trained transformers.

Trockman & Kolter, "Mimetic Initialization of Self-Attention Layers", ICML 2023, arXiv 2305.09828, with its
constants for vision transformers. In the paper's row convention, x W: query times key is near 0.7 I, value times output
projection near -0.4 I. Shapes: D width, H heads, K head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fine_core.dit import DiT, ModelSize
from fine_core.randomness import stream_generator

QUERY_KEY = 0.7  # of the noise and of the identity in W_Q W_K^T
VALUE_OUTPUT = 0.4  # of the noise in W_V W_proj; the identity has the opposite sign


def query_key_targets(size: ModelSize, *, seed: int, layer: int) -> Tensor:
    """What W_Q W_K^T (H, D, D) of each head of a block approximates: 0.7 Z + 0.7 I, entries of Z from N(0, 1 / D)."""
    generator = stream_generator(seed, "mimetic query-key", layer)
    noise = torch.randn(size.num_heads, size.width, size.width, generator=generator) / math.sqrt(size.width)
    return QUERY_KEY * noise + QUERY_KEY * torch.eye(size.width)


def value_output_target(size: ModelSize, *, seed: int, layer: int) -> Tensor:
    """What W_V W_proj (D, D) of all heads of a block together is: 0.4 Z - 0.4 I, entries of Z from N(0, 1 / D)."""
    generator = stream_generator(seed, "mimetic value-output", layer)
    noise = torch.randn(size.width, size.width, generator=generator) / math.sqrt(size.width)
    return VALUE_OUTPUT * noise - VALUE_OUTPUT * torch.eye(size.width)


@torch.no_grad()
def mimetic_(model: DiT, *, seed: int) -> DiT:
    """Set the qkv and proj weights of every block, in place; returns the model. All else stays as it is.

    The singular values are split evenly between the two factors of a product. nn.Linear stores the transposes (out, in).
    It takes H + 1 singular value decompositions of D x D for each block.
    """
    size = model.config.size
    for layer, block in enumerate(model.blocks):
        left, values, right = torch.linalg.svd(query_key_targets(size, seed=seed, layer=layer))  # (H, D, D), (H, D), (H, D, D)
        roots = values[:, : size.head_dim].sqrt().unsqueeze(-1)  # (H, K, 1)
        query = roots * left[..., : size.head_dim].mT  # (H, K, D): W_Q^T, the best of rank K
        key = roots * right[:, : size.head_dim]  # (H, K, D): W_K^T
        left, values, right = torch.linalg.svd(value_output_target(size, seed=seed, layer=layer))
        value = values.sqrt().unsqueeze(-1) * left.T  # (D, D): W_V^T = (U S^1/2)^T
        output = right.T * values.sqrt()  # (D, D): W_proj^T = (S^1/2 V^T)^T
        block.attn.qkv.weight.copy_(torch.cat([query.flatten(0, 1), key.flatten(0, 1), value]))
        block.attn.proj.weight.copy_(output)
    return model
