"""Features of images by any extractor: the numbers from which all scores are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

OUTPUTS = "a tensor (N, F), or a dict with 'features' (N, F) and optionally 'spatial' (N, ...) and 'logits' (N, K)"


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of N images, float32, where the extractor is: pooled (N, F), spatial (N, S) flattened, class logits (N, K)."""

    pooled: Tensor
    spatial: Tensor | None
    logits: Tensor | None

    def __len__(self) -> int:
        return len(self.pooled)

    @staticmethod
    def join(parts: Sequence[Features]) -> Features:
        """Concatenate features of one extractor, in order."""
        return Features(
            pooled=torch.cat([part.pooled for part in parts]),
            spatial=_join([part.spatial for part in parts]),
            logits=_join([part.logits for part in parts]),
        )


def _join(tensors: Sequence[Tensor | None]) -> Tensor | None:
    return None if tensors[0] is None else torch.cat(tensors)


@torch.no_grad()
def extract_features(extractor: nn.Module, images: Tensor, *, batch_size: int = 512) -> Features:
    """Features of uint8 images (N, C, H, H), which go to the extractor's device `batch_size` at a time.

    The extractor returns a tensor (N, F), or a dict with "features" (N, F) and optionally "spatial" (N, ...) and "logits"
    (N, K). Raises ValueError for other outputs and for numbers that are not finite.
    """
    device = next((tensor.device for tensor in chain(extractor.parameters(), extractor.buffers())), images.device)
    return Features.join([_read(extractor(batch.to(device)), len(batch)) for batch in images.split(batch_size)])


def _read(output: Tensor | dict[str, Tensor], num_images: int) -> Features:
    if isinstance(output, Tensor):
        output = {"features": output}
    if not isinstance(output, dict) or "features" not in output:
        found = f"a dict of {list(output)}" if isinstance(output, dict) else type(output).__name__
        raise ValueError(f"the extractor returned {found}; it must return {OUTPUTS}")
    pooled = _checked("features", output["features"], num_images, flat=True)
    _check_no_probabilities(pooled)
    return Features(
        pooled=pooled,
        spatial=_checked("spatial", output["spatial"], num_images).flatten(1) if "spatial" in output else None,
        logits=_checked("logits", output["logits"], num_images, flat=True) if "logits" in output else None,
    )


def _check_no_probabilities(features: Tensor) -> None:
    """Raises ValueError for a classifier's output: distances of probabilities are no FID."""
    sums = features.sum(dim=1)
    if features.shape[1] > 1 and (features >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        raise ValueError(
            "the extractor returns class probabilities (rows that sum to 1); "
            'return the activations before its last layer as "features", and the logits as "logits"'
        )


def _checked(name: str, values: Tensor, num_images: int, *, flat: bool = False) -> Tensor:
    if not isinstance(values, Tensor):
        raise ValueError(f"the extractor's {name!r} is of type {type(values).__name__}; it must return {OUTPUTS}")
    if values.ndim < 2 or len(values) != num_images or (flat and values.ndim != 2):
        expected = f"({num_images}, {'numbers per image' if flat else '...'})"
        raise ValueError(f"the extractor's {name!r} has shape {tuple(values.shape)} for {num_images} images, not {expected}")
    if values.is_complex() or values.shape[1] == 0:
        what = "complex numbers" if values.is_complex() else "no numbers at all"
        raise ValueError(f"the extractor's {name!r} has {what}; features are real numbers")
    values = values.float()
    if not values.isfinite().all():
        raise ValueError(f"the extractor's {name!r} has numbers that are not finite")
    return values
