"""What a set of training images is to those who use it: labels in memory, and images or latents by their rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

LANES = 8  # groups of rows that a batch is mixed from, of sets that are read in groups


class DataError(ValueError):
    """Images, latents or labels that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What chance adds to N images: `flipped` (N,), and the noise (N, C, H, H) that draws latents from their posterior."""

    flipped: Tensor
    noise: Tensor | None

    def part(self, first: int, last: int) -> Augmentation:
        return Augmentation(flipped=self.flipped[first:last], noise=None if self.noise is None else self.noise[first:last])


class ImageSource(Protocol):
    """N labelled images (C, H, H) in [-1, 1], or latents as a model takes them.

    `device` is where `labels` (N,) are, and where rows are to be named. `group_sizes`: how many rows lie together and should
    be read together, where that matters.
    """

    labels: Tensor
    shape: tuple[int, int, int]
    device: torch.device
    in_memory: bool
    group_sizes: Tensor | None

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> ImageSource:
        """The same set, whose images are taken to `device`."""

    def draw_augmentation(self, number: int, generator: torch.Generator) -> Augmentation | None:
        """None for a set that is used as it is."""

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
    """How latents were made: by which VAE (hash of its weights), times which scale, from which images."""

    vae_sha256: str
    scale: float
    data: str
    image_size: int


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known of a dataset before it is loaded.

    `train_per_class` limits the `train` split; `features_of` names the dataset on which the classifier is trained whose
    features score this one (its own where None). `latents` is None for images.
    """

    summary: str
    image_size: int
    channels: int
    num_classes: int
    load: Callable[[], ImageSource]
    train_per_class: int | None = None
    features_of: str | None = None
    latents: LatentInfo | None = None
