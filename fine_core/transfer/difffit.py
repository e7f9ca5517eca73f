"""DiffFit: biases, the label table and new scale factors gamma are trained; everything else is frozen.

Xie et al., "DiffFit: Unlocking Transferability of Large Diffusion Models via Simple Parameter-Efficient Fine-Tuning",
arXiv 2304.06648, section 3. gamma is a vector per channel, starts at 1 and folds into the layer before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fine_core.dit import DiT
from fine_core.transfer.delta import dense_from, train_only

TRAINABLE_WORDS = ("bias", "norm", "gamma", "y_embedder")
DEFAULT_SPAN = 0.5  # scales in the first half of the blocks


def _scaled_modules(model: DiT) -> Iterator[tuple[nn.Module, int, nn.Linear]]:
    """(module whose output is scaled, its channels, linear layer that the scale folds into) of every block, in order."""
    width = model.config.size.width
    for block in model.blocks:
        yield block.attn.qkv, 3 * width, block.attn.qkv
        yield block.attn.proj, width, block.attn.proj
        yield block.attn, width, block.attn.proj
        yield block.mlp, width, block.mlp.fc2


def _scale_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output * module.gamma


def apply_difffit(model: DiT, *, span: float = DEFAULT_SPAN) -> None:
    """Add scales to the first `span` of the blocks (rounded up) and mark what DiffFit trains. Raises ValueError."""
    if not 0 <= span <= 1:
        raise ValueError(f"gamma_span is {span}; it must be between 0 (no scales) and 1 (all blocks)")
    scaled_blocks = math.ceil(span * model.config.size.depth)
    for index, (module, channels, linear) in enumerate(_scaled_modules(model)):
        if index // 4 < scaled_blocks:
            module.gamma = nn.Parameter(torch.ones(channels, device=linear.weight.device))
            module.register_forward_hook(_scale_output)
    train_only(model, lambda name: any(word in name for word in TRAINABLE_WORDS))


@torch.no_grad()
def fold_scales(model: DiT) -> DiT:
    """The equivalent dense DiT: every gamma is multiplied into the weight and bias before it. `model` is not changed."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("gamma")}
    dense = dense_from(model, state)
    for (module, _, _), (_, _, linear) in zip(_scaled_modules(model), _scaled_modules(dense), strict=True):
        if hasattr(module, "gamma"):
            linear.weight *= module.gamma[:, None]
            linear.bias *= module.gamma
    return dense
