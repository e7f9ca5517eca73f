"""Dataset interface: labels in memory, images or latents by row index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

LANES = 8  # number of row groups that are mixed in a batch, for sets that are read in groups


class DataError(ValueError):
    """Images, latents or labels that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random augmentation of N images: `flipped` (N,), and the noise (N, C, H, H) that draws latents from their posterior."""

    flipped: Tensor
    noise: Tensor | None

    def of(self, places: Tensor) -> Augmentation:
        return Augmentation(flipped=self.flipped[places], noise=None if self.noise is None else self.noise[places])


class ImageSource(Protocol):
    """N labelled images (C, H, H) in [-1, 1], or latents as model inputs.

    `labels` (N,) and row indices are on `device`. `group_sizes` are the numbers of consecutive rows that should be read
    together; None if the order does not matter.
    """

    labels: Tensor
    shape: tuple[int, int, int]
    device: torch.device
    in_memory: bool
    group_sizes: Tensor | None

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> ImageSource:
        """The same set; its images are returned on `device`."""

    def draw_augmentation(self, number: int, generator: torch.Generator) -> Augmentation | None:
        """Random augmentation for `number` images, or None if the set has no augmentation."""

    def take(self, rows: Tensor, augmentation: Augmentation | None = None) -> Tensor:
        """Images (n, C, H, H) of `rows` (n,)."""


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images (N, C, H, H) in memory, with labels (N,)."""

    images: Tensor
    labels: Tensor

    in_memory = True
    group_sizes = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def to(self, device: torch.device | str) -> ImageSet:
        return ImageSet(images=self.images.to(device), labels=self.labels.to(device))

    def draw_augmentation(self, number: int, generator: torch.Generator) -> None:
        return None

    def take(self, rows: Tensor, augmentation: Augmentation | None = None) -> Tensor:
        return self.images[rows]


@dataclass(frozen=True, kw_only=True)
class LatentInfo:
    """Origin of latents: the VAE (hash of its weights), the scale, and the dataset of images."""

    vae_sha256: str
    scale: float
    data: str
    image_size: int


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Description of a dataset, available without loading it.

    `train_per_class` limits the `train` split. `features_of` names the dataset of the classifier whose features score this
    one (None: this dataset itself). `latents` is None for images. `num_images` is known of a set by path.
    """

    summary: str
    image_size: int
    channels: int
    num_classes: int
    load: Callable[[], ImageSource]
    train_per_class: int | None = None
    features_of: str | None = None
    latents: LatentInfo | None = None
    num_images: int | None = None
