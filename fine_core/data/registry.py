"""Datasets by name: real handwritten digits, domains derived from them and procedural scenes, all in memory; and sets by path.

Splits: `train` has the training images. `pool`, the reference of scores, has all images of the domain that are not held out:
more than `train` if the domain has few training images. `held_out` has a fifth. A set by path is wholly in `train` and `pool`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fine_core.data.by_path import DatasetPath, info_by_path, is_by_path
from fine_core.data.readers.registry import formats
from fine_core.data.shapes import SOLIDS, render_scenes
from fine_core.data.source import DatasetInfo, ImageSet, ImageSource

HELD_OUT_SHARE = 5  # every fifth image of a class is held out
SPLITS = ("train", "pool", "held_out")
SCENES_PER_CLASS = 160
SOURCE_SOLIDS, TARGET_SOLIDS = tuple(SOLIDS)[:8], tuple(SOLIDS)[8:]


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
    """Scenes at one resolution: source solids, target solids, and all of them."""

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
    """Description of a dataset. Raises ValueError if it is unknown, DataError for files that cannot be used."""
    if is_by_path(name):
        return info_by_path(name)
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; choose one of {', '.join(sorted(DATASETS))}, or {formats()}")
    return DATASETS[name]


def image_size_of(name: str) -> int:
    """Side of a dataset's images, from its name alone. Raises ValueError for an unknown dataset."""
    return DatasetPath.parse(name).image_size if is_by_path(name) else dataset_info(name).image_size


def reference_dataset(name: str) -> str:
    """The dataset, without random flips, that samples are compared with. For latents: the images that were encoded."""
    if not is_by_path(name):
        return name
    latents = info_by_path(name).latents
    return DatasetPath.parse(name).unflipped if latents is None else latents.data


def short_name(name: str) -> str:
    """A dataset's name for titles and files. For a set by path: its folder's name and the image size."""
    return name if name in DATASETS else DatasetPath.parse(name).short


@lru_cache(maxsize=8)
def _whole(name: str) -> ImageSource:
    return dataset_info(name).load()


def load_dataset(name: str, split: str) -> ImageSource:
    """One split of a dataset (see SPLITS), cached. Raises ValueError for an unknown dataset or split."""
    if split not in SPLITS or (is_by_path(name) and split == "held_out"):
        raise ValueError(f"{name} has no split {split!r}")
    return _whole(name) if is_by_path(name) else _part(name, split)


@lru_cache(maxsize=16)
def _part(name: str, split: str) -> ImageSet:
    info, whole = dataset_info(name), _whole(name)
    chosen = torch.zeros(len(whole), dtype=torch.bool)
    for label in range(info.num_classes):
        rows = (whole.labels == label).nonzero().squeeze(1)
        is_held_out = torch.arange(len(rows)) % HELD_OUT_SHARE == 0
        rows = rows[is_held_out if split == "held_out" else ~is_held_out]
        chosen[rows[: info.train_per_class if split == "train" else None]] = True
    return ImageSet(images=whole.images[chosen], labels=whole.labels[chosen])


def labels_to_sample(reference: ImageSource, num_samples: int) -> Tensor:
    """Labels (num_samples,) with the class frequencies of the reference, in a fixed mixed order."""
    order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))
    repeats = -(-num_samples // len(reference))
    return reference.labels[order.repeat(repeats)[:num_samples]]


def rows_in_mixed_order(data: ImageSource, batch_size: int) -> Iterator[Tensor]:
    """All rows once, in a fixed random order. Rows of a group stay together; the order of the groups is random."""
    generator = torch.Generator().manual_seed(0)
    if data.group_sizes is None:
        yield from torch.randperm(len(data), generator=generator).to(data.device).split(batch_size)
        return
    starts = data.group_sizes.cumsum(0) - data.group_sizes
    for group in torch.randperm(len(data.group_sizes), generator=generator):
        yield from torch.arange(int(starts[group]), int(starts[group] + data.group_sizes[group])).split(batch_size)
