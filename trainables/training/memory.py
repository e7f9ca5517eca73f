"""How much memory a training step takes, predicted: what autograd keeps is counted on tensors without data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fine_core.dit import MLP_RATIO, DiT, DiTConfig, count_parameters
from fine_core.precision import autocast

PARAMETER_BYTES = GRADIENT_BYTES = 4
TRAINED_BYTES = 8 + 4  # of a trained parameter besides: Adam's moments and its average, all fp32
LARGEST_TENSORS = 4  # as large as an MLP's hidden layer in fp32, that live for a moment: fitted to an H200
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes that autograd keeps of a forward pass: whatever the batch, and of each image."""

    fixed: int
    per_image: int


@lru_cache(maxsize=256)
def activations(config: DiTConfig, precision: str, *, recomputes: bool) -> Activations:
    """What a DiT's training pass keeps. With `recomputes` a block's input, and one block in full while it is recomputed."""
    one, two = (_of_depth(replace(config, size=replace(config.size, depth=depth)), precision) for depth in (1, 2))
    block = Activations(fixed=two.fixed - one.fixed, per_image=two.per_image - one.per_image)
    outside = Activations(fixed=one.fixed - block.fixed, per_image=one.per_image - block.per_image)
    depth = config.size.depth
    if not recomputes:
        return Activations(fixed=outside.fixed + depth * block.fixed, per_image=outside.per_image + depth * block.per_image)
    inputs = 4 * config.num_tokens * config.size.width  # of a block, per image: the residual stream in fp32
    return Activations(fixed=outside.fixed + block.fixed, per_image=outside.per_image + depth * inputs + block.per_image)


@lru_cache(maxsize=256)
def _of_depth(config: DiTConfig, precision: str) -> Activations:
    one, two = (_kept_bytes(config, precision, images) for images in (1, 2))
    return Activations(fixed=2 * one - two, per_image=two - one)


def _kept_bytes(config: DiTConfig, precision: str, images: int) -> int:
    kept: dict[int, int] = {}

    with FakeTensorMode():
        model = DiT(config)
        weights = {tensor.untyped_storage()._cdata for tensor in model.state_dict().values()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage.nbytes()
            return tensor

        shape = (images, config.in_channels, config.input_size, config.input_size)
        index = torch.zeros(images, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(precision, CPU):
            output = model(torch.zeros(shape), index.float(), index)
        del output
    return sum(kept.values())


def predicted_peak_bytes(
    config: DiTConfig,
    *,
    images: int,
    trained: int | None = None,
    precision: str = "fp32",
    recomputes: bool = False,
    accumulates: bool = False,
) -> int:
    """The most memory that a training step of `images` at once takes. `trained`: parameters that are trained (None: all).
    `accumulates`: further micro-batches follow, while the gradients of the first ones are kept."""
    total = count_parameters(config)
    trained = total if trained is None else trained
    state = PARAMETER_BYTES * total + TRAINED_BYTES * trained
    found = activations(config, precision, recomputes=recomputes)
    passing = LARGEST_TENSORS * images * config.num_tokens * MLP_RATIO * config.size.width * 4
    kept, gradients = found.fixed + images * found.per_image, GRADIENT_BYTES * trained
    # The most is held when the backward pass begins, with no gradients yet, or when it ends, with all of them.
    return state + passing + (kept + gradients if accumulates else max(kept, gradients))
