"""The interface of dataset readers, and the count of images that could not be decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fine_core.data.source import DataError

MAX_CORRUPT_SHARE = 0.01  # share of a set's images; one is always allowed
CORRUPT_NAMES = 5  # number of names that an error lists


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a set is opened for: the side of its images in pixels, and columns that have no usual name."""

    image_size: int
    image_column: str | None = None
    label_column: str | None = None


class Reader(Protocol):
    """Raw rows of a set by path: uint8 images (n, 3, H, H), or stored moments of latents."""

    labels: Tensor
    group_sizes: Tensor | None
    row_shape: tuple[int, ...]
    dtype: torch.dtype
    fingerprint: str
    corrupt: CorruptImages
    notes: tuple[str, ...]  # what a person should know of how the files were taken

    def read(self, rows: Tensor) -> Tensor: ...


class CorruptImages:
    """Files that could not be decoded, by row. Too many of them raise an error."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows, self.names = num_rows, dict[int, str]()

    def add(self, row: int, name: str) -> None:
        """Count a file. Raises DataError beyond the limit."""
        self.names[row] = name
        if len(self.names) > max(1, int(MAX_CORRUPT_SHARE * self.num_rows)):
            listed = ", ".join(list(self.names.values())[:CORRUPT_NAMES])
            raise DataError(
                f"{len(self.names)} of {self.num_rows:,} images cannot be read, more than {MAX_CORRUPT_SHARE:.0%}: {listed}"
                f"{', ...' if len(self.names) > CORRUPT_NAMES else ''}; remove or replace them"
            )


def fingerprint_of(files: Iterable[tuple[str, int]]) -> str:
    """A hash of files' names and sizes in bytes."""
    digest = hashlib.sha256()
    for name, size_bytes in files:
        digest.update(f"{name} {size_bytes}\n".encode())
    return digest.hexdigest()[:8]
