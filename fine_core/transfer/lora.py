"""LoRA: low-rank updates of linear layers, a baseline of DiffFit's comparison (arXiv 2304.06648, table 1).

The label table is trained too. At the start the model computes exactly what the base model does.
"""

from __future__ import annotations

import torch

from fine_core.dit import DiT
from fine_core.transfer.delta import dense_from, train_only

LABEL_TABLE = "y_embedder"
LORA_TARGETS = {"qkv": ["attn.qkv"], "all": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"]}


def apply_lora(model: DiT, *, rank: int, targets: str, seed: int) -> None:
    """Hu et al., "LoRA", arXiv 2106.09685, through peft: low-rank updates of the blocks' linear layers that `targets` names.

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
    """The equivalent dense DiT: every update is added to its weight. `model` is not changed."""
    from peft.tuners.lora import LoraLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if "lora_" not in name}
    for name, layer in layers.items():
        state[f"{name}.weight"] = state[f"{name}.weight"] + layer.get_delta_weight("default")
    return dense_from(model, state)
