"""Images from files: decoding, DiT's centre crop, and the replacement of files that cannot be decoded."""

from __future__ import annotations

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from fine_core.data.readers.base import CorruptImages, fingerprint_of
from fine_core.data.source import DataError

DECODE_THREADS = 4


def centre_crop(image: Image.Image, image_size: int) -> Image.Image:
    """The central square at `image_size`: halved by area averaging while it stays large enough, then bicubic (ADM, DiT)."""
    while min(image.size) >= 2 * image_size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = image_size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - image_size) // 2, (image.height - image_size) // 2
    return image.crop((left, top, left + image_size, top + image_size))


def decode(content: bytes, image_size: int) -> Tensor | None:
    """An RGB image (3, H, H), uint8; None if it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.array(centre_crop(image.convert("RGB"), image_size))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what PIL raises on damaged files
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def decode_rows(reader: FolderReader, rows: Tensor) -> Tensor:
    """Decode `rows` (n,). An image that cannot be decoded is replaced by the next image of its class that can.

    The images of a step therefore depend on the files alone, not on the process that reads them. Raises DataError if too
    many images cannot be decoded, or all images of a class.
    """
    wanted = rows.tolist()
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        decoded = list(pool.map(partial(decode, image_size=reader.row_shape[-1]), reader.contents(wanted)))
    for place, row in enumerate(wanted):
        if decoded[place] is None:
            decoded[place] = _decode_next(reader, row)
    return torch.stack(decoded)


def _decode_next(reader: FolderReader, row: int) -> Tensor:
    alike = (reader.labels == reader.labels[row]).nonzero().squeeze(1).tolist()
    start = alike.index(row)
    for candidate in alike[start:] + alike[:start]:
        image = decode(next(iter(reader.contents([candidate]))), reader.row_shape[-1])
        if image is not None:
            return image
        reader.corrupt.add(candidate, reader.name_of(candidate))
    raise DataError(f"no image of class {int(reader.labels[row])} can be read, such as {reader.name_of(row)}")


class FolderReader:
    """A folder of images: one subfolder for each class, in alphabetical order, or no subfolder and one class."""

    group_sizes = None
    dtype = torch.uint8

    def __init__(self, path: str, image_size: int) -> None:
        root = Path(path)
        if not root.is_dir():
            raise DataError(f"no such folder: {path}")
        self.root, self.row_shape = root, (3, image_size, image_size)
        files = _files_of(root)
        if not files:
            raise DataError(f"{path} holds no image ({', '.join(IMG_EXTENSIONS)}), nor do its subfolders; name another folder")
        self.files = [file for file, _ in files]
        self.labels = torch.tensor([label for _, label in files])
        self.corrupt = CorruptImages(len(files))

    @property
    def fingerprint(self) -> str:
        return fingerprint_of((self._relative(file), Path(file).stat().st_size) for file in self.files)

    def _relative(self, file: str) -> str:
        return Path(file).relative_to(self.root).as_posix()

    def name_of(self, row: int) -> str:
        return self._relative(self.files[row])

    def contents(self, rows: list[int]) -> Iterable[bytes]:
        return (Path(self.files[row]).read_bytes() for row in rows)

    def read(self, rows: Tensor) -> Tensor:
        try:
            return decode_rows(self, rows)
        except OSError as error:
            raise DataError(f"an image cannot be read: {error}") from error


def _files_of(root: Path) -> list[tuple[str, int]]:
    """(file, label) of all images below a folder."""
    if not any(entry.is_dir() for entry in root.iterdir()):
        return [(str(file), 0) for file in sorted(root.iterdir()) if file.suffix.lower() in IMG_EXTENSIONS]
    names, _ = find_classes(str(root))
    found = make_dataset(root, {name: i for i, name in enumerate(names)}, extensions=IMG_EXTENSIONS, allow_empty=True)
    used = sorted({label for _, label in found})  # a subfolder without images is not a class
    return [(file, used.index(label)) for file, label in found]
