"""Image datasets in memory, in [-1, 1]. `digits` is embedded: scikit-learn's 1,797 real handwritten digits, 8 x 8."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

HELD_OUT_SHARE = 5  # every fifth image of a class is held out


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What a model needs to know of a dataset before it is loaded."""

    image_size: int
    channels: int
    num_classes: int


DATASETS = {"digits": DatasetInfo(image_size=8, channels=1, num_classes=10)}


def dataset_info(name: str) -> DatasetInfo:
    """Raises ValueError for an unknown dataset."""
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; choose one of {', '.join(sorted(DATASETS))}")
    return DATASETS[name]


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images (N, C, H, H) in [-1, 1] with labels (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> ImageSet:
        return ImageSet(images=self.images.to(device), labels=self.labels.to(device))


@lru_cache(maxsize=8)
def load_dataset(name: str, split: str) -> ImageSet:
    """Load one split of a dataset: `train`, or `held_out` (a fifth of each class, in the dataset's own order)."""
    dataset_info(name)
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32)).unsqueeze(1) / 8 - 1  # pixels are 0..16
    labels = torch.from_numpy(digits.target.astype(np.int64))
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        held_out[(labels == label).nonzero().squeeze(1)[::HELD_OUT_SHARE]] = True
    chosen = {"train": ~held_out, "held_out": held_out}[split]
    return ImageSet(images=images[chosen], labels=labels[chosen])


def labels_to_sample(reference: ImageSet, num_samples: int) -> Tensor:
    """Labels (num_samples,) with the class frequencies of the reference, in a fixed mixed order."""
    order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))
    repeats = -(-num_samples // len(reference))
    return reference.labels[order.repeat(repeats)[:num_samples]]
