"""The image files of a folder and their classes, as torchvision's and Hugging Face's image folders have them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from PIL import Image

from fine_core.data.readers.base import Wanted
from fine_core.data.readers.labels import SHOWN, from_text, number_labels
from fine_core.data.readers.metadata import Metadata, metadata_of
from fine_core.data.source import DataError
from fine_core.text import listed

SYSTEM_FOLDERS = ("@eaDir", "__MACOSX", "__pycache__", "$RECYCLE.BIN", "System Volume Information", "lost+found", "#recycle")
SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
TRAIN = ("train", "training")
STUBS = ("BUFR", "GRIB", "HDF5", "MPEG")  # formats that Pillow names and does not read
NAMED = 3  # left-out things in a note


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """Files with their labels, and what a person should know of those that are not among them."""

    files: list[str]
    labels: list[int]
    notes: tuple[str, ...]
    table: Path | None = None  # which the labels are from


@cache
def extensions() -> frozenset[str]:
    """Of the formats that this Pillow reads."""
    known = Image.registered_extensions().items()
    return frozenset(name for name, kind in known if kind in Image.OPEN and kind not in STUBS)


def is_hidden(path: Path) -> bool:
    """Whether a file or folder belongs to an editor or a file system, and not to the set."""
    return path.name.startswith(".") or path.name in SYSTEM_FOLDERS


def find_images(root: Path, wanted: Wanted) -> ImageFiles:
    """Raises DataError for a folder without images, that cannot be read, or whose subfolders are splits."""
    entries = [entry for entry in sorted(root.iterdir()) if not is_hidden(entry)]
    folders = [entry for entry in entries if entry.is_dir()]
    loose = [entry for entry in entries if entry.is_file()]
    _check_no_splits(root, folders)
    table = metadata_of(root, loose)
    column = None if table is None else table.label_column(wanted.label_column)
    if wanted.label_column and column is None:
        raise DataError(f"{root} has no metadata.csv or metadata.jsonl with file_name and {wanted.label_column!r}")
    unlabelled = () if table is None or column is not None else (table.without_labels,)
    if table is not None and column is not None:
        found = _by_table(root, table, column, [*(loose), *(file for folder in folders for file in _below(folder))])
    elif not folders:
        images, others = _apart(loose)
        found = ImageFiles(files=list(map(str, images)), labels=[0] * len(images), notes=_notes(others=others))
    else:
        found = _by_class(folders, loose)
    found = replace(found, notes=(*found.notes, *unlabelled))
    if not found.files:
        raise DataError(f"{root} holds no image that Pillow reads, nor do its subfolders; name another folder")
    return found


def _check_no_splits(root: Path, folders: list[Path]) -> None:
    """Raises DataError for `train`, `test` and the like, also beside other folders: they are no classes."""
    splits = [folder for folder in folders if _split_of(folder) in SPLITS]
    if splits and (len(splits) == len(folders) or len(splits) > 1 or _split_of(splits[0]) in TRAIN):
        splits.sort(key=lambda folder: (_split_of(folder) not in TRAIN, folder.name))
        beside = "" if len(splits) == len(folders) else ", beside other folders"
        names = ", ".join(folder.name for folder in splits)
        raise DataError(f"{root} holds the splits {names}{beside}; name one, such as imagefolder:{splits[0]}")


def _split_of(folder: Path) -> str:
    """The name of a folder without a year, as in `train2017`."""
    return folder.name.lower().rstrip("0123456789").rstrip("-_")


def _by_table(root: Path, table: Metadata, column: str, present: list[Path]) -> ImageFiles:
    """The images that a table names, in the order of their names, with the labels of its column."""
    rows = sorted(zip(table.file_names(root), table.labels(column), strict=True))
    files, labels = [file for file, _ in rows], from_text([label for _, label in rows])
    twice = sorted({file.name for file in files if files.count(file) > 1}) if len(set(files)) < len(files) else []
    if twice:
        raise DataError(f"{table.path} names {listed(twice)} more than once")
    missing = [file for file in files if file.suffix.lower() not in extensions() or not file.is_file()]
    if missing:
        raise DataError(f"{table.path} names {listed([m.name for m in missing])}, which are not there, or no images")
    unnamed = sorted(set(_apart(present)[0]) - set(files))
    numbers, notes = number_labels([labels], str(table.path), column=column)
    notes = (f"labels are those of {table.path.name}", *notes)
    if unnamed:
        notes += (f"left out, as {table.path.name} does not name them: {listed([file.name for file in unnamed], first=NAMED)}",)
    return ImageFiles(files=list(map(str, files)), labels=numbers.tolist(), notes=notes, table=table.path)


def _by_class(folders: list[Path], loose: list[Path]) -> ImageFiles:
    files, labels, names, empty, others = [], [], [], [], []
    for folder in folders:
        inner = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and _split_of(entry) in SPLITS)
        if len(inner) > 1:
            raise DataError(f"{folder} holds the splits {', '.join(inner)}; name a set whose classes lie below the splits")
        images, rest = _apart(_below(folder))
        others += rest
        if images:
            label = labels[-1] + 1 if labels else 0  # a subfolder without images is not a class
            files += map(str, images)
            labels += [label] * len(images)
            names.append(f"{label} = {folder.name}")
        else:
            empty.append(folder)
    beside, _ = _apart(loose)
    notes = (f"classes are its subfolders: {listed(names, first=SHOWN)}", *_notes(others=others, empty=empty, beside=beside))
    return ImageFiles(files=files, labels=labels, notes=notes)


def _below(folder: Path) -> list[Path]:
    """All files below a folder in torchvision's order, which names of sets stand on."""
    found: list[Path] = []
    for base, names in sorted(_walk(folder)):
        parts = [Path(part) for part in Path(base).relative_to(folder).parts]
        if not any(map(is_hidden, parts)):
            found += [file for name in sorted(names) if not is_hidden(file := Path(base, name))]
    return found


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its files) of a folder and all below it. Raises DataError where it cannot be read, or never ends."""
    for base, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        for inner in (Path(base, name) for name in folders):
            if inner.is_symlink() and inner.parent.resolve().is_relative_to(inner.resolve()):
                raise DataError(f"{inner} leads back to a folder above it; remove the link")
        yield base, names


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read ({error.strerror}); its images would be missing") from error


def _apart(files: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Images, and other files."""
    files = list(files)
    return [f for f in files if f.suffix.lower() in extensions()], [f for f in files if f.suffix.lower() not in extensions()]


def _notes(*, others: Sequence[Path], empty: Sequence[Path] = (), beside: Sequence[Path] = ()) -> tuple[str, ...]:
    left_out = {
        "no class, as they hold no image": empty,
        "left out, as they lie beside the class folders": beside,
        "left out, as Pillow reads no such files": others,
    }
    return tuple(f"{why}: {listed([path.name for path in paths], first=NAMED)}" for why, paths in left_out.items() if paths)
