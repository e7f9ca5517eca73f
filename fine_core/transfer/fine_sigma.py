"""FINE-sigma: transfer a base model by training sigma alone, along the learngene's shared factors.

Every block matrix becomes W_l + U diag(d_l) V^T with d_l trained from zero (FINE, arXiv 2409.19289, section 3.3, where W_l
is U diag(sigma_l) V^T itself). Everything else that the base model has learned stays. Shapes: D width, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fine_core.dit import DiT
from fine_core.initializers.fine.learngene import Learngene
from fine_core.initializers.matrices import BLOCK_MATRICES
from fine_core.transfer.delta import dense_from, train_only


def _linears(model: DiT) -> Iterator[tuple[str, nn.Linear]]:
    for block in model.blocks:
        for matrix, place in BLOCK_MATRICES.items():
            yield matrix, block.get_submodule(place)


def _add_sigma(linear: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + ((inputs[0] @ linear.right) * linear.delta_sigma) @ linear.left.T


def apply_fine_sigma(model: DiT, learngene: Learngene, *, width_mode: str) -> None:
    """Add d_l (R,) to every block matrix and train only d_l. Raises ValueError for heads of another size."""
    device = model.pos_embed.device
    assembled = learngene.assemble(model.config.size, width_mode=width_mode).to(device)
    factors = assembled.shared_tensors()
    for matrix, linear in _linears(model):
        linear.delta_sigma = nn.Parameter(torch.zeros(assembled.rank, device=device))
        # Not in the state dict: the factors belong to the learngene, which is stored once.
        linear.register_buffer("left", factors[f"left.{matrix}"].detach(), persistent=False)  # (out, R)
        linear.register_buffer("right", factors[f"right.{matrix}"].detach(), persistent=False)  # (in, R)
        linear.register_forward_hook(_add_sigma)
    train_only(model, lambda name: name.endswith("delta_sigma"))


@torch.no_grad()
def merge_fine_sigma(model: DiT) -> DiT:
    """The equivalent dense DiT. `model` is not changed."""
    dense = dense_from(model, {name: t for name, t in model.state_dict().items() if not name.endswith("delta_sigma")})
    for (_, source), (_, target) in zip(_linears(model), _linears(dense), strict=True):
        target.weight += (source.left * source.delta_sigma) @ source.right.T
    return dense
