"""Datasets in memory, images in [-1, 1]: real handwritten digits, domains made from them, and procedural scenes.

Everything is embedded or generated. Splits: `train` is what models learn from, `pool` all images of the domain that are not
held out (larger than `train` where a domain has few training images; scores are taken against it), `held_out` a fifth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fine_core.shapes import SOLIDS, render_scenes

HELD_OUT_SHARE = 5  # every fifth image of a class is held out
SPLITS = ("train", "pool", "held_out")
SCENES_PER_CLASS = 160
SOURCE_SOLIDS, TARGET_SOLIDS = tuple(SOLIDS)[:8], tuple(SOLIDS)[8:]


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images (N, C, H, H) in [-1, 1] with labels (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> ImageSet:
        return ImageSet(images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known of a dataset before it is loaded.

    `train_per_class` limits the `train` split; `features_of` names the dataset on which the classifier is trained whose
    features score this one (its own where None).
    """

    summary: str
    image_size: int
    channels: int
    num_classes: int
    load: Callable[[], ImageSet]
    train_per_class: int | None = None
    features_of: str | None = None


@lru_cache(maxsize=1)
def _digits() -> ImageSet:
    """scikit-learn's 1,797 real handwritten digits (UCI, test part), 8 x 8."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32)).unsqueeze(1) / 8 - 1  # pixels are 0..16
    return ImageSet(images=images, labels=torch.from_numpy(digits.target.astype(np.int64)))


def _changed_digits(change: Callable[[Tensor], Tensor]) -> Callable[[], ImageSet]:
    return lambda: ImageSet(images=change(_digits().images), labels=_digits().labels)


def _enlarge(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=2, mode="bicubic", align_corners=False).clamp(-1, 1)


def _scenes(solids: tuple[str, ...], image_size: int) -> Callable[[], ImageSet]:
    def load() -> ImageSet:
        labels = torch.arange(SCENES_PER_CLASS * len(solids)) % len(solids)
        scenes = render_scenes(labels, solids, image_size=image_size, generator=torch.Generator().manual_seed(len(solids)))
        return ImageSet(images=scenes.images, labels=labels)

    return load


def _digits_info(summary: str, load: Callable[[], ImageSet], **fields) -> DatasetInfo:
    return DatasetInfo(**{"image_size": 8, "channels": 1, "num_classes": 10, "summary": summary, "load": load, **fields})


def _scenes_infos(image_size: int, suffix: str) -> dict[str, DatasetInfo]:
    """Source, target and all solids together at one resolution."""

    def info(summary: str, solids: tuple[str, ...], **fields) -> DatasetInfo:
        same = {"image_size": image_size, "channels": 3, "num_classes": len(solids), "load": _scenes(solids, image_size)}
        return DatasetInfo(summary=summary, **same, **fields)

    everything = f"shapes-all{suffix}"
    few = f"scenes with {len(TARGET_SOLIDS)} other solids, 24 of each to learn from"
    return {
        f"shapes{suffix}": info(f"scenes with one of {len(SOURCE_SOLIDS)} solids", SOURCE_SOLIDS, features_of=everything),
        f"shapes-few{suffix}": info(few, TARGET_SOLIDS, train_per_class=24, features_of=everything),
        everything: info("scenes with all solids", tuple(SOLIDS)),
    }


DATASETS = {
    "digits": _digits_info("1,797 real handwritten digits", _digits),
    "digits-rotated-few": _digits_info(
        "the same images turned by 90 degrees, six of each class to learn from: strokes as in `digits`, few images",
        _changed_digits(lambda images: images.rot90(1, dims=(2, 3))),
        train_per_class=6,
    ),
    "digits-inverted": _digits_info("the same images with ink and paper exchanged: other pixels", _changed_digits(torch.neg)),
    "digits-16": _digits_info("the same images enlarged to 16 x 16 (bicubic)", _changed_digits(_enlarge), image_size=16),
    **_scenes_infos(16, ""),
    **_scenes_infos(32, "-32"),
}


def dataset_info(name: str) -> DatasetInfo:
    """Raises ValueError for an unknown dataset."""
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; choose one of {', '.join(sorted(DATASETS))}")
    return DATASETS[name]


@lru_cache(maxsize=8)
def _whole(name: str) -> ImageSet:
    return dataset_info(name).load()


@lru_cache(maxsize=16)
def load_dataset(name: str, split: str) -> ImageSet:
    """Load one split of a dataset (see SPLITS). Raises ValueError for an unknown dataset."""
    info = dataset_info(name)
    whole = _whole(name)
    chosen = torch.zeros(len(whole), dtype=torch.bool)
    for label in range(info.num_classes):
        rows = (whole.labels == label).nonzero().squeeze(1)
        is_held_out = torch.arange(len(rows)) % HELD_OUT_SHARE == 0
        rows = rows[is_held_out if split == "held_out" else ~is_held_out]
        chosen[rows[: info.train_per_class if split == "train" else None]] = True
    return ImageSet(images=whole.images[chosen], labels=whole.labels[chosen])


def labels_to_sample(reference: ImageSet, num_samples: int) -> Tensor:
    """Labels (num_samples,) with the class frequencies of the reference, in a fixed mixed order."""
    order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))
    repeats = -(-num_samples // len(reference))
    return reference.labels[order.repeat(repeats)[:num_samples]]
