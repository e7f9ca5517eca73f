"""Deltas: the trainable tensors of a transfer, stored apart from the base model that they belong to."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fine_core.checkpoints.native import CheckpointError, load_tensors, save_tensors
from fine_core.dit import DiT

FIXED = "pos_embed"  # a constant stored as a parameter, because public checkpoints contain the position table


def train_only(model: nn.Module, chosen: Callable[[str], bool]) -> None:
    """Freeze every parameter except those whose name is chosen. The position table is never trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name != FIXED and chosen(name))


def trainable_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name, detached."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def save_delta(model: nn.Module, path: str | os.PathLike, config: dict) -> None:
    """Write the trainable tensors; `config` names their transfer method and base model."""
    save_tensors(path, trainable_tensors(model), kind="delta", config=config)


@torch.no_grad()
def load_delta(model: nn.Module, path: str | os.PathLike) -> dict:
    """Load a delta into a base model that its transfer method has prepared; returns the config.

    Raises CheckpointError if the file is damaged or its tensors are not the trainable ones of the model.
    """
    tensors, config = load_tensors(path, kind="delta")
    expected = trainable_tensors(model)
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
        raise CheckpointError(f"{path} does not fit the model: it is of another method, size or span of scales")
    for name, tensor in tensors.items():
        expected[name].copy_(tensor)
    return config


def dense_from(model: DiT, state: dict[str, Tensor]) -> DiT:
    """A plain DiT with the config and device of `model` and the tensors of `state`."""
    dense = DiT(model.config).to(model.pos_embed.device)
    dense.load_state_dict(state)
    return dense


def squared_distance(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """||theta - theta_0||^2 over tensors of the same names (arXiv 2406.00773, the forgetting measure)."""
    return sum((after[name].double() - before[name].to(after[name].device).double()).square().sum().item() for name in before)
