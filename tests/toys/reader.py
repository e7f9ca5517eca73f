"""Toy: `npy:FOLDER` with images.npy (N, 3, H, H), uint8, and labels.npy (N,)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fine_core.data.readers.base import CorruptImages, Wanted, fingerprint_of
from fine_core.data.source import DataError


class NpyReader:
    group_sizes = None
    dtype = torch.uint8
    notes = ()

    def __init__(self, path: str, wanted: Wanted) -> None:
        self.files = [Path(path) / name for name in ("images.npy", "labels.npy")]
        if not all(file.is_file() for file in self.files):
            raise DataError(f"no such set: {path}")
        self.images, labels = (torch.from_numpy(np.load(file)) for file in self.files)
        self.labels, self.row_shape = labels.long(), tuple(self.images.shape[1:])
        self.fingerprint = fingerprint_of((file.name, file.stat().st_size) for file in self.files)
        self.corrupt = CorruptImages(len(self.labels))

    def read(self, rows: Tensor) -> Tensor:
        return self.images[rows]
