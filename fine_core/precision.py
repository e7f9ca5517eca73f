"""Number formats of matrix products: fp32, TF32, or bf16 by autocast. Weights, optimizer state, averages and losses are fp32.

TF32 rounds the factors of a product to 10 bits of mantissa, bf16 to 7; both sum in fp32. bf16 has the range of fp32, so no
loss scaling is needed. Timestep features, positions, the residual stream and normalizations stay fp32 under autocast.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from fine_core.denoiser import Conditions, Denoiser

PRECISIONS = ("fp32", "tf32", "bf16")
BF16_CAPABILITY = (8, 0)  # compute capability of the first GPUs with bf16 and TF32 (Ampere)


def check_precision(precision: str, device: torch.device) -> None:
    """Raises ValueError if a device lacks a precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if precision == "tf32" and device.type != "cuda":
        raise ValueError("precision tf32 is of NVIDIA GPUs; choose fp32 or bf16 on a CPU")
    if precision != "fp32" and device.type == "cuda" and torch.cuda.get_device_capability(device) < BF16_CAPABILITY:
        raise ValueError(f"{torch.cuda.get_device_name(device)} has no {precision}; choose --precision fp32")


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Run fp32 products and convolutions in TF32 if `precision` is tf32, else in fp32. Restores the setting at exit."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for switch, setting in zip(switches, before, strict=True):
            switch.fp32_precision = setting


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context of a forward pass."""
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def denoiser_in(precision: str, denoiser: Denoiser) -> Denoiser:
    """A denoiser that computes in a precision; its output is fp32, as the losses and the samplers need it."""
    if precision != "bf16":
        return denoiser

    def computed(x: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        with autocast(precision, x.device):
            return denoiser(x, t, conditions).float()

    return computed
