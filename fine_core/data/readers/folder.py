"""Images from files: decoding, DiT's centre crop, and the replacement of files that cannot be decoded."""

from __future__ import annotations

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fine_core.data.readers.base import MAX_CORRUPT_SHARE, CorruptImages, Wanted, fingerprint_of
from fine_core.data.readers.image_files import find_images
from fine_core.data.source import DataError
from fine_core.files import sha256_of

DECODE_THREADS = 4
EXAMINED = 1000  # images whose header is read to say how many are transparent or turned
FLOATS = "F"  # Pillow's mode
ORIENTATION = 0x0112  # in EXIF data; 1 is upright


def centre_crop(image: Image.Image, image_size: int) -> Image.Image:
    """The central square at `image_size`: halved by area averaging while it stays large enough, then bicubic (ADM, DiT)."""
    while min(image.size) >= 2 * image_size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = image_size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - image_size) // 2, (image.height - image_size) // 2
    return image.crop((left, top, left + image_size, top + image_size))


def as_rgb(image: Image.Image) -> Image.Image:
    """An image in RGB; transparent parts become white, and 16 bits become 8."""
    if image.mode == FLOATS:
        raise ValueError("numbers without a fixed range are no image")
    if image.mode.startswith("I;16") or (image.mode == "I" and np.asarray(image).max() > 255):
        image = Image.fromarray((np.asarray(image).clip(0, 2**16 - 1) >> 8).astype(np.uint8))  # Pillow would clip at 255
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def decode(content: bytes, image_size: int) -> Tensor | None:
    """An RGB image (3, H, H), uint8, upright as its EXIF data say; None if it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.array(centre_crop(as_rgb(ImageOps.exif_transpose(image)), image_size))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what PIL raises on damaged files
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _changed(files: list[str]) -> tuple[str, ...]:
    """How many images have transparency or are not stored upright, among some that are spread over the set."""
    some = files[:: -(-len(files) // EXAMINED)]
    transparent = turned = floats = 0
    for file in some:
        try:
            with Image.open(file) as image:
                floats += image.mode == FLOATS
                transparent += image.has_transparency_data
                turned += image.getexif().get(ORIENTATION, 1) != 1
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # a damaged image is named when it is read
    if floats > max(1, MAX_CORRUPT_SHARE * len(some)):
        raise DataError(f"{floats} of {len(some)} images hold floats, which have no fixed range; convert them to 8 or 16 bits")
    of = f"of {len(some):,}{' examined' if len(some) < len(files) else ''} images"
    counts = {"have transparent parts, which become white": transparent, "are turned upright by their EXIF data": turned}
    return tuple(f"{count:,} {of} {what}" for what, count in counts.items() if count)


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
    """A folder of images: one subfolder for each class, in alphabetical order, or no subfolder and one class.

    Raises DataError for a folder without images, or of splits.
    """

    group_sizes = None
    dtype = torch.uint8

    def __init__(self, path: str, wanted: Wanted) -> None:
        root = Path(path)
        if not root.is_dir():
            raise DataError(f"no such folder: {path}")
        self.root, self.row_shape = root, (3, wanted.image_size, wanted.image_size)
        if wanted.image_column is not None:
            raise DataError(f"--image-column is of tables; {path} is a folder of images, leave it out")
        found = find_images(root, wanted)
        self.files, self.notes, self.table = found.files, (*found.notes, *_changed(found.files)), found.table
        self.labels = torch.tensor(found.labels)
        self.corrupt = CorruptImages(len(self.files))

    @property
    def fingerprint(self) -> str:
        files = [(self._relative(file), Path(file).stat().st_size) for file in self.files]
        if self.table is not None:  # its labels count, not its size alone
            files.append((f"{self.table.name} {sha256_of(self.table)}", 0))
        return fingerprint_of(files)

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
