"""Parameter-efficient baselines of DiffFit's comparison (arXiv 2304.06648, table 1): BitFit, LoRA, adapters, VPT-Deep.

All train the label table too. Each starts exactly at the base model, except VPT-Deep: a prompt token takes part in the
attention from the first step on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fine_core.delta import dense_from, train_only
from fine_core.dit import DiT

LABEL_TABLE = "y_embedder"
ADAPTER_WIDTH = 64
PROMPTED_BLOCKS = 5
LORA_TARGETS = {"qkv": ["attn.qkv"], "all": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"]}


def apply_bitfit(model: DiT) -> None:
    """Ben Zaken et al., "BitFit", arXiv 2106.10199: biases (and the label table)."""
    train_only(model, lambda name: name.endswith("bias") or name.startswith(LABEL_TABLE))


def apply_lora(model: DiT, *, rank: int, targets: str, seed: int) -> None:
    """Hu et al., "LoRA", arXiv 2106.09685, through peft: low-rank updates of the blocks' linears that `targets` names.

    alpha is 2 * rank. Needs the `lora` extra.
    """
    from peft import LoraConfig, inject_adapter_in_model

    suffixes = LORA_TARGETS[targets]
    names = [f"blocks.{i}.{suffix}" for i in range(model.config.size.depth) for suffix in suffixes]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    train_only(model, lambda name: "lora_" in name or name.startswith(LABEL_TABLE))


@torch.no_grad()
def merge_lora(model: DiT) -> DiT:
    """The dense DiT that computes the same: every update added to its weight. `model` is left alone."""
    from peft.tuners.lora import LoraLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if "lora_" not in name}
    for name, layer in layers.items():
        state[f"{name}.weight"] = state[f"{name}.weight"] + layer.get_delta_weight("default")
    return dense_from(model, state)


class Adapter(nn.Module):
    """A bottleneck of two linears around GELU whose output starts at zero (Houlsby et al., arXiv 1902.00751)."""

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
    """One adapter at every block's MLP: beside it (parallel, arXiv 2110.04366) or after it (sequential)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in model.blocks:
            block.mlp.adapter = Adapter(model.config.size.width).to(block.mlp.fc1.weight.device)
            block.mlp.register_forward_hook(_add_parallel if parallel else _add_sequential)
    train_only(model, lambda name: ".adapter." in name or name.startswith(LABEL_TABLE))


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
            prompt = torch.empty(1, 1, width).uniform_(-bound, bound)  # on the CPU, whose generator is seeded
            block.prompt = nn.Parameter(prompt.to(block.mlp.fc1.weight.device))
            block.register_forward_pre_hook(_prepend_prompt)
            block.register_forward_hook(_drop_prompt)
    train_only(model, lambda name: name.endswith("prompt") or name.startswith((LABEL_TABLE, "final_layer")))
