"""Checks for numbers that are not finite: they are a failure, never a score."""

from __future__ import annotations

from torch import Tensor, nn


class NotFinite(RuntimeError):
    """A model or its samples hold numbers that are not finite."""


def check_finite_model(model: nn.Module) -> None:
    """Raises NotFinite if a parameter of the model is not finite."""
    bad = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    if bad:
        raise NotFinite(f"{len(bad)} tensors of the model are not finite, {bad[0]} among them; try a lower learning rate")


def check_finite_samples(samples: Tensor) -> None:
    """Raises NotFinite if samples (N, C, H, H) are not finite."""
    if not samples.isfinite().all():
        bad = int((~samples.flatten(1).isfinite().all(dim=1)).sum())
        raise NotFinite(f"{bad} of {len(samples)} samples are not finite; the model has diverged")
