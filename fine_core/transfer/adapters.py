"""A bottleneck adapter at the MLP of every block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fine_core.dit import DiT
from fine_core.transfer.delta import train_only
from fine_core.transfer.lora import LABEL_TABLE

ADAPTER_WIDTH = 64


class Adapter(nn.Module):
    """Two linear layers around a bottleneck with GELU; the output starts at zero (Houlsby et al., arXiv 1902.00751)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, ADAPTER_WIDTH)
        self.up = nn.Linear(ADAPTER_WIDTH, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(nn.functional.gelu(self.down(x)))


def _add_parallel(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + module.adapter(inputs[0])


def _add_sequential(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + module.adapter(output)


def apply_adapter(model: DiT, *, parallel: bool, seed: int) -> None:
    """Add an adapter to every block's MLP: in parallel with it (arXiv 2110.04366) or after it (sequential)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in model.blocks:
            block.mlp.adapter = Adapter(model.config.size.width).to(block.mlp.fc1.weight.device)
            block.mlp.register_forward_hook(_add_parallel if parallel else _add_sequential)
    train_only(model, lambda name: ".adapter." in name or name.startswith(LABEL_TABLE))
