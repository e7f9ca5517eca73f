"""What a metric is: a name, a direction, what it reads of reference and samples, and how it is computed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from fine_core.evaluation.reference import Reference
from fine_core.evaluation.samples import Samples

IN_WORDS = {
    "pooled": "features",
    "spatial": "spatial features",
    "features": "the features of single images",
    "logits": "class logits",
}
OF_SAMPLES_ALONE = ("logits",)


class Compute(Protocol):
    def __call__(self, reference: Reference, samples: Samples, *, seed: int) -> float:
        """One number; what is drawn for it is drawn from `seed`. Raises ValueError for sets that are too small."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric by its name in records and its label in tables.

    `needs`: fields that `compute` reads from both `Samples` and `Reference` (logits from `Samples` alone).
    `min_images`: the fewest images that the smaller of the two sets may have.
    """

    name: str
    label: str
    lower_is_better: bool
    needs: tuple[str, ...]
    compute: Compute
    min_images: int = 2

    def lacks(self, *, of_samples: Collection[str], of_reference: Collection[str], num_images: int | None) -> str | None:
        """One line that names the field, or the number of images, that the metric lacks; None if nothing is lacking."""
        if num_images is not None and num_images < self.min_images:
            return f"{self.name} needs at least {self.min_images} images on both sides, and one side has {num_images}"
        for need in self.needs:
            if need not in of_samples:
                return f"{self.name} needs {IN_WORDS[need]}, which the extractor does not give"
            if need not in (*of_reference, *OF_SAMPLES_ALONE):
                return f"{self.name} needs {IN_WORDS[need]} of the reference, which does not have them"
        return None
