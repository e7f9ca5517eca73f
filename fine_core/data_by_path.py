"""Datasets by path: `imagefolder:PATH` and `parquet:PATH`.

Such a set is known by a name that says all that fixes its images: `imagefolder:/data/pets[64px,flips,1a2b3c4d]`, with a
fingerprint of its files. Whoever opens the name and finds other files says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from fine_core.image_files import FolderReader, Reader
from fine_core.image_set import Augmentation, DataError, DatasetInfo

KINDS = ("imagefolder", "parquet")
CACHE_LIMIT_BYTES = 2**28  # smaller sets are kept in memory once they have been read
_NAME = re.compile(r"(?P<kind>\w+):(?P<path>.+)\[(?P<size>\d+)px(?P<flips>,flips)?,(?P<fingerprint>[0-9a-f]{8})\]")


def is_by_path(name: str) -> bool:
    return name.partition(":")[0] in KINDS


@dataclass(frozen=True, kw_only=True)
class DatasetPath:
    """A set by path, its images cropped to `image_size` (of latents: their own), and flipped at random if `flips`."""

    kind: str
    path: str
    image_size: int
    flips: bool
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}[{self.image_size}px{',flips' if self.flips else ''},{self.fingerprint}]"

    @property
    def short(self) -> str:
        """The folder's name and the size."""
        return f"{Path(self.path).stem}-{self.image_size}"

    @property
    def unflipped(self) -> str:
        """The name of the same set whose images are taken as they are."""
        return str(replace(self, flips=False))

    @classmethod
    def parse(cls, name: str) -> DatasetPath:
        """Raises DataError for a name that was not made by `resolve`."""
        found = _NAME.fullmatch(name)
        if found is None:
            raise DataError(f"{name!r} does not say which images it means; name it to a sweep as --dataset KIND:PATH")
        return cls(
            kind=found["kind"],
            path=found["path"],
            image_size=int(found["size"]),
            flips=found["flips"] is not None,
            fingerprint=found["fingerprint"],
        )


def resolve(text: str, *, image_size: int, flips: bool) -> str:
    """The name of the set that `text` (KIND:PATH) means. Raises DataError if there is none that can be used."""
    kind, _, path = text.partition(":")
    if kind not in KINDS or not path:
        raise DataError(f"{text!r} names no images; write {' or '.join(f'{kind}:PATH' for kind in KINDS)}")
    path = path if "://" in path else str(Path(path).expanduser().absolute())
    if image_size < 1:
        raise DataError(f"image_size is {image_size}; it must be at least 1")
    reader = _open(kind, path, image_size)
    found = DatasetPath(kind=kind, path=path, image_size=reader.row_shape[-1], flips=flips, fingerprint=reader.fingerprint)
    return str(replace(found, flips=flips and (reader.dtype == torch.uint8 or reader.row_shape[0] == 2)))


@lru_cache(maxsize=8)
def _open(kind: str, path: str, image_size: int) -> Reader:
    if kind == "imagefolder":
        return FolderReader(path, image_size)
    from fine_core.parquet_images import ParquetReader  # late: pyarrow is not on every machine that trains

    return ParquetReader(path, image_size)


@lru_cache(maxsize=8)
def info_by_path(name: str) -> DatasetInfo:
    """What is known of a set by its name. Raises DataError if its files are not those that the name was made of."""
    spec = DatasetPath.parse(name)
    reader = _open(spec.kind, spec.path, spec.image_size)
    if reader.fingerprint != spec.fingerprint:
        raise DataError(f"{spec.path} has changed since the sweep was planned; start the sweep again")
    latents = getattr(reader, "latents", None)
    return DatasetInfo(
        summary=f"{len(reader.labels):,} {'images' if latents is None else 'latents'} of {spec.path}",
        image_size=spec.image_size,
        channels=reader.row_shape[-3],
        num_classes=int(reader.labels.max()) + 1,
        load=lambda: FileSet(reader, flips=spec.flips, scale=None if latents is None else latents.scale),
        latents=latents,
    )


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
        """What lies in one group with `rows`: it is read with them, and would have to be read again."""
        sizes = self.reader.group_sizes
        if sizes is None:
            return rows
        ends = sizes.cumsum(0)
        groups = torch.searchsorted(ends, rows, right=True).unique()
        return torch.cat([torch.arange(int(ends[g] - sizes[g]), int(ends[g])) for g in groups])


class FileSet:
    """The images or latents of a reader as models take them; `scale` is that of latents, None for images."""

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
        """Without augmentation: images unflipped, latents at their posterior's mean."""
        raw = self.reader.read(rows.cpu()).to(self.to_device)
        if self.scale is not None:
            return self._drawn(raw.float(), augmentation) * self.scale
        images = raw.float() / 127.5 - 1
        if augmentation is None:
            return images
        return torch.where(augmentation.flipped[:, None, None, None], images.flip(-1), images)

    def _drawn(self, raw: Tensor, augmentation: Augmentation | None) -> Tensor:
        """Latents (n, C, H, H) of stored moments (n, views, 2, C, H, H): mean and deviation of each view."""
        if augmentation is None:
            return raw[:, 0, 0]
        view = augmentation.flipped.long()
        mean, deviation = raw[torch.arange(len(raw), device=raw.device), view].unbind(dim=1)
        return mean + deviation * augmentation.noise
