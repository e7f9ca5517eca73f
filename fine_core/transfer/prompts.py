"""VPT-Deep: a trained prompt token in each of the first blocks. Prompts change the output from the first step on."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fine_core.dit import DiT
from fine_core.transfer.delta import train_only
from fine_core.transfer.lora import LABEL_TABLE

PROMPTED_BLOCKS = 5


def _prepend_prompt(block: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    x, c = inputs
    return torch.cat([block.prompt.expand(len(x), -1, -1), x], dim=1), c  # (N, 1 + T, D)


def _drop_prompt(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output[:, 1:]


def apply_prompts(model: DiT, *, seed: int) -> None:
    """VPT-Deep (Jia et al., arXiv 2203.12119): one prompt token into each of the first five blocks; final layer trained."""
    width = model.config.size.width
    bound = math.sqrt(6 / (width + model.config.patch_size**2 * model.config.in_channels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in model.blocks[:PROMPTED_BLOCKS]:
            prompt = torch.empty(1, 1, width).uniform_(-bound, bound)  # on the CPU: only its generator is seeded
            block.prompt = nn.Parameter(prompt.to(block.mlp.fc1.weight.device))
            block.register_forward_pre_hook(_prepend_prompt)
            block.register_forward_hook(_drop_prompt)
    train_only(model, lambda name: name.endswith("prompt") or name.startswith((LABEL_TABLE, "final_layer")))
