"""Datasets by path: `imagefolder:PATH` and `parquet:PATH`.

The name of such a set contains everything that fixes its images: `imagefolder:/data/pets[64px,flips,1a2b3c4d]`, with a
fingerprint of its files. Opening the name raises an error if the files have changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote

import torch

from fine_core.data.file_set import FileSet
from fine_core.data.readers.base import Reader, Wanted
from fine_core.data.readers.registry import READERS, formats
from fine_core.data.source import DataError, DatasetInfo
from fine_core.text import has_login

_NAME = re.compile(
    r"(?P<kind>\w+):(?P<path>.+)\[(?P<size>\d+)px(?P<flips>,flips)?"
    r"(?:,image=(?P<image>[^,\]]+))?(?:,label=(?P<label>[^,\]]+))?,(?P<fingerprint>[0-9a-f]{8})\]"
)


def is_by_path(name: str) -> bool:
    return name.partition(":")[0] in READERS


@dataclass(frozen=True, kw_only=True)
class DatasetPath:
    """A set by path. Images are cropped to `image_size` (latents keep their size) and flipped at random if `flips`.

    `image_column` and `label_column` are of tables whose columns have no usual name.
    """

    kind: str
    path: str
    image_size: int
    flips: bool
    fingerprint: str
    image_column: str | None = None
    label_column: str | None = None

    def __str__(self) -> str:
        flips = ",flips" if self.flips else ""
        image = f",image={quote(self.image_column)}" if self.image_column else ""
        label = f",label={quote(self.label_column)}" if self.label_column else ""
        return f"{self.kind}:{self.path}[{self.image_size}px{flips}{image}{label},{self.fingerprint}]"

    @property
    def wanted(self) -> Wanted:
        return Wanted(image_size=self.image_size, image_column=self.image_column, label_column=self.label_column)

    @property
    def short(self) -> str:
        """The name of the folder or file and the size, for people: sets elsewhere may have the same."""
        return f"{self.path.rstrip('/').rpartition('/')[2].removesuffix('.parquet')}-{self.image_size}"

    @property
    def unflipped(self) -> str:
        """The name of the same set without random flips."""
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
            image_column=found["image"] and unquote(found["image"]),
            label_column=found["label"] and unquote(found["label"]),
        )


def resolve(text: str, *, wanted: Wanted, flips: bool) -> str:
    """The full name of the set that `text` (KIND:PATH) stands for. Raises DataError if it cannot be used."""
    kind, _, path = text.partition(":")
    if kind not in READERS or not path:
        raise DataError(f"{text!r} names no images; write {formats()}")
    if has_login(path):
        raise DataError(f"the URI of {kind}: holds a password; leave it out, and set it in the environment")
    path = path if "://" in path else str(Path(path).expanduser().absolute())
    if wanted.image_size < 1:
        raise DataError(f"image_size is {wanted.image_size}; it must be at least 1")
    reader = _open(kind, path, wanted)
    found = DatasetPath(
        kind=kind,
        path=path,
        image_size=reader.row_shape[-1],
        flips=flips,
        fingerprint=reader.fingerprint,
        image_column=wanted.image_column,
        label_column=wanted.label_column,
    )
    return str(replace(found, flips=flips and (reader.dtype == torch.uint8 or reader.row_shape[0] == 2)))


@lru_cache(maxsize=8)
def _open(kind: str, path: str, wanted: Wanted) -> Reader:
    return READERS[kind](path, wanted)


def notes_of(name: str) -> tuple[str, ...]:
    """What a person should know of how the files of a set were taken."""
    spec = DatasetPath.parse(name)
    return _open(spec.kind, spec.path, spec.wanted).notes


@lru_cache(maxsize=8)
def info_by_path(name: str) -> DatasetInfo:
    """Dataset info from a set's name. Raises DataError if its files differ from those that the name was made of."""
    spec = DatasetPath.parse(name)
    reader = _open(spec.kind, spec.path, spec.wanted)
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
        num_images=len(reader.labels),
    )
