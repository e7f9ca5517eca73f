"""Labels as people write them, as class numbers; what was done is said."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from fine_core.data.source import DataError
from fine_core.text import listed

LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls", "category")
MAX_UNUSED = 1000  # class numbers without an image: beyond, labels count as names and are numbered anew
_WHOLE = re.compile(r"[+-]?\d{1,15}(\.0*)?")  # pandas writes whole numbers as 3.0
SHOWN = 12  # classes in a note


def whole_numbers(values: np.ndarray, where: str) -> np.ndarray:
    """Fractions that are whole, as integers. Raises DataError for others."""
    if not np.all(np.isfinite(values) & (values == np.floor(values))):
        raise DataError(f"{where} holds fractions; labels are whole numbers or names")
    return values.astype(np.int64)


def from_text(values: Sequence[str]) -> np.ndarray:
    """Labels that were written as text: whole numbers if all of them are, else names."""
    if all(_WHOLE.fullmatch(value.strip()) for value in values):
        return np.array([int(float(value)) for value in values], dtype=np.int64)
    return np.array(values, dtype=object)


def number_labels(
    parts: Sequence[np.ndarray], path: str, *, column: str | None, names: Sequence[str] = ()
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers (N,), int64, for the labels of all files, and notes for people on the numbering.

    Names are numbered in alphabetical order over all files. `column`: the column of labels, None without one. `names`: names
    of the class numbers, if the set has any. Raises DataError for labels of several kinds, or below 0.
    """
    kinds = {
        "names" if part.dtype.kind in "OU" else "true and false" if part.dtype.kind == "b" else "numbers" for part in parts
    }
    if len(kinds) > 1:
        raise DataError(f"{path}: labels are {' and '.join(sorted(kinds))} in different files; write them alike")
    values = np.concatenate(parts)
    notes = [] if column else ["it has no column of labels, so it is one class"]
    if column not in (None, "label"):
        notes.append(f"labels are those of its column {column}")
    distinct = np.unique(values)
    if "names" in kinds:
        notes.append(f"classes in alphabetical order: {_mapping(distinct)}")
        return np.searchsorted(distinct, values).astype(np.int64), tuple(notes)
    if "true and false" in kinds:
        notes.append("classes: 0 = false, 1 = true")
        return values.astype(np.int64), tuple(notes)
    values, distinct = values.astype(np.int64), distinct.astype(np.int64)  # bytes would overflow below
    if distinct[0] < 0:
        raise DataError(
            f"{path}: label {distinct[0]} is negative, which datasets write for a missing one; leave those rows out"
        )
    if names and distinct[-1] < len(names):
        notes.append(f"classes: {_mapping(names)}")
    if distinct[-1] + 1 - len(distinct) > MAX_UNUSED:
        notes.append(f"{len(distinct)} classes numbered anew, as their labels go up to {distinct[-1]}: {_mapping(distinct)}")
        return np.searchsorted(distinct, values).astype(np.int64), tuple(notes)
    unused = np.setdiff1d(np.arange(distinct[-1] + 1), distinct)
    if len(unused):
        notes.append(f"{distinct[-1] + 1} classes, of which {len(unused)} have no image: {listed(unused.tolist())}")
    return values.astype(np.int64), tuple(notes)


def _mapping(names: Sequence | np.ndarray) -> str:
    return listed([f"{number} = {name}" for number, name in enumerate(names)], first=SHOWN)
