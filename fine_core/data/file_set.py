"""A dataset that reads its images from files on demand."""

from __future__ import annotations

import torch
from torch import Tensor

from fine_core.data.readers.base import Reader
from fine_core.data.source import Augmentation

CACHE_LIMIT_BYTES = 2**28  # smaller sets stay in memory after the first read


class _Kept:
    """A reader whose rows stay in memory."""

    group_sizes = None

    def __init__(self, reader: Reader) -> None:
        self.reader, self.labels, self.row_shape, self.dtype = reader, reader.labels, reader.row_shape, reader.dtype
        self.corrupt = reader.corrupt
        self.values = torch.empty((len(reader.labels), *reader.row_shape), dtype=reader.dtype)
        self.is_kept = torch.zeros(len(reader.labels), dtype=torch.bool)

    def read(self, rows: Tensor) -> Tensor:
        missing = rows[~self.is_kept[rows]].unique()
        if len(missing):
            missing = self._with_their_groups(missing)
            self.values[missing] = self.reader.read(missing)
            self.is_kept[missing] = True
        return self.values[rows]

    def _with_their_groups(self, rows: Tensor) -> Tensor:
        """All rows of the groups that contain `rows`: a group is read as a whole, so keeping all of it avoids a second read."""
        sizes = self.reader.group_sizes
        if sizes is None:
            return rows
        ends = sizes.cumsum(0)
        groups = torch.searchsorted(ends, rows, right=True).unique()
        return torch.cat([torch.arange(int(ends[g] - sizes[g]), int(ends[g])) for g in groups])


class FileSet:
    """The images or latents of a reader, as model inputs. `scale` is the latents' scale, None for images."""

    in_memory = False

    def __init__(self, reader: Reader, *, flips: bool, scale: float | None, to_device: torch.device | str = "cpu") -> None:
        row_bytes = reader.dtype.itemsize * torch.Size(reader.row_shape).numel()
        fits = row_bytes * len(reader.labels) <= CACHE_LIMIT_BYTES and not isinstance(reader, _Kept)
        self.reader: Reader = _Kept(reader) if fits else reader
        self.flips, self.scale, self.to_device = flips, scale, torch.device(to_device)
        self.labels, self.group_sizes, self.device = reader.labels, self.reader.group_sizes, torch.device("cpu")
        self.shape = tuple(reader.row_shape[-3:])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def corrupt(self) -> list[str]:
        """Names of the images that this process could not read."""
        return list(self.reader.corrupt.names.values())

    def to(self, device: torch.device | str) -> FileSet:
        return FileSet(self.reader, flips=self.flips, scale=self.scale, to_device=device)

    def draw_augmentation(self, number: int, generator: torch.Generator) -> Augmentation | None:
        if not self.flips and self.scale is None:
            return None
        device = generator.device
        flipped = torch.rand(number, generator=generator, device=device) < (0.5 if self.flips else 0.0)
        noise = None if self.scale is None else torch.randn((number, *self.shape), generator=generator, device=device)
        return Augmentation(flipped=flipped, noise=noise)

    def take(self, rows: Tensor, augmentation: Augmentation | None = None) -> Tensor:
        """Rows as model inputs. Without augmentation images are unflipped, and latents are the mean of their posterior."""
        raw = self.reader.read(rows.cpu()).to(self.to_device)
        if self.scale is not None:
            return self._drawn(raw.float(), augmentation) * self.scale
        images = raw.float() / 127.5 - 1
        if augmentation is None:
            return images
        return torch.where(augmentation.flipped[:, None, None, None], images.flip(-1), images)

    def _drawn(self, raw: Tensor, augmentation: Augmentation | None) -> Tensor:
        """Latents (n, C, H, H) drawn from stored moments (n, views, 2, C, H, H): mean and standard deviation of each view."""
        if augmentation is None:
            return raw[:, 0, 0]
        view = augmentation.flipped.long()
        mean, deviation = raw[torch.arange(len(raw), device=raw.device), view].unbind(dim=1)
        return mean + deviation * augmentation.noise
