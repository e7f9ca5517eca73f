"""Shapes of what jobs store, and so its bytes, before anything is computed."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from fine_core.checkpoints.native import config_to_json, predicted_file_bytes
from fine_core.dit import DiT, DiTConfig, count_parameters
from trainables.methods import transfer_method
from trainables.methods.base import Shapes
from trainables.specs.transfers import TransferSpec


@lru_cache(maxsize=1024)
def model_shapes(model: DiTConfig) -> Shapes:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in DiT(model).state_dict().items()}


def model_file_bytes(model: DiTConfig) -> int:
    """Bytes of a dense model's file."""
    return predicted_file_bytes(model_shapes(model), kind="dit", config=config_to_json(model))


def delta_shapes(job: TransferSpec) -> Shapes:
    """Shapes of the tensors that a transfer trains, by name."""
    return transfer_method(job.method).trained_shapes(job.model, job.options, job.initialization)


def served_parameters(job: TransferSpec) -> int:
    """Parameters of the model that a transfer serves: the base's, and what a method adds that cannot be merged."""
    number = count_parameters(job.model)
    if transfer_method(job.method).mergeable:
        return number
    own = model_shapes(job.model)
    return number + sum(math.prod(shape) for name, shape in delta_shapes(job).items() if name not in own)
