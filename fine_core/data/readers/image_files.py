"""The image files of a folder and their classes, as torchvision's and Hugging Face's image folders have them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from fine_core.data.source import DataError

SYSTEM_FOLDERS = ("@eaDir", "__MACOSX", "__pycache__", "$RECYCLE.BIN", "System Volume Information", "lost+found", "#recycle")
SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
STUBS = ("BUFR", "GRIB", "HDF5", "MPEG")  # formats that Pillow names and does not read
NAMED = 3  # left-out things in a note


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """Files with their labels, and what a person should know of those that are not among them."""

    files: list[str]
    labels: list[int]
    notes: tuple[str, ...]


@cache
def extensions() -> frozenset[str]:
    """Of the formats that this Pillow reads."""
    known = Image.registered_extensions().items()
    return frozenset(name for name, kind in known if kind in Image.OPEN and kind not in STUBS)


def is_hidden(path: Path) -> bool:
    """Whether a file or folder belongs to an editor or a file system, and not to the set."""
    return path.name.startswith(".") or path.name in SYSTEM_FOLDERS


def find_images(root: Path) -> ImageFiles:
    """Raises DataError for a folder without images, or whose subfolders are splits."""
    entries = [entry for entry in sorted(root.iterdir()) if not is_hidden(entry)]
    folders = [entry for entry in entries if entry.is_dir()]
    loose = [entry for entry in entries if entry.is_file()]
    if folders and all(folder.name.lower() in SPLITS for folder in folders):
        splits = ", ".join(folder.name for folder in folders)
        raise DataError(f"{root} holds the splits {splits}; name one, such as imagefolder:{folders[0]}")
    if not folders:
        images, others = _apart(loose)
        found = ImageFiles(files=list(map(str, images)), labels=[0] * len(images), notes=_notes(others=others))
    else:
        found = _by_class(folders, loose)
    if not found.files:
        raise DataError(f"{root} holds no image that Pillow reads, nor do its subfolders; name another folder")
    return found


def _by_class(folders: list[Path], loose: list[Path]) -> ImageFiles:
    files, labels, empty, others = [], [], [], []
    for folder in folders:
        images, rest = _apart(_below(folder))
        others += rest
        if images:
            label = labels[-1] + 1 if labels else 0  # a subfolder without images is not a class
            files += map(str, images)
            labels += [label] * len(images)
        else:
            empty.append(folder)
    beside, _ = _apart(loose)
    return ImageFiles(files=files, labels=labels, notes=_notes(others=others, empty=empty, beside=beside))


def _below(folder: Path) -> list[Path]:
    """All files below a folder in torchvision's order, which names of sets stand on."""
    found: list[Path] = []
    for base, _, names in sorted(os.walk(folder, followlinks=True)):
        parts = [Path(part) for part in Path(base).relative_to(folder).parts]
        if not any(map(is_hidden, parts)):
            found += [file for name in sorted(names) if not is_hidden(file := Path(base, name))]
    return found


def _apart(files: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Images, and other files."""
    files = list(files)
    return [f for f in files if f.suffix.lower() in extensions()], [f for f in files if f.suffix.lower() not in extensions()]


def _notes(*, others: Sequence[Path], empty: Sequence[Path] = (), beside: Sequence[Path] = ()) -> tuple[str, ...]:
    notes = []
    if empty:
        notes.append(f"no class, as they hold no image: {_listed(empty)}")
    if beside:
        notes.append(f"left out, as they lie beside the class folders: {_listed(beside)}")
    if others:
        notes.append(f"left out, as Pillow reads no such files: {_listed(others)}")
    return tuple(notes)


def _listed(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(path.name for path in paths[:NAMED]) + more
