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


def not_finite(samples: Tensor) -> str | None:
    """What is wrong with samples (N, C, H, H) that are not finite; None if nothing is."""
    finite = samples.flatten(1).isfinite().all(dim=1)
    if bool(finite.all()):
        return None
    return f"{int((~finite).sum())} of {len(samples)} samples are not finite; the model has diverged"
