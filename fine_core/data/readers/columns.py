"""The columns of a table of images: which hold images and labels, and the labels as class numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from fine_core.data.source import DataError

LATENT = "latent"
IMAGE_NAMES = ("image", "img", "images", "jpg", "png")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls", "category")
MAX_UNUSED = 1000  # class numbers without an image: beyond, labels count as names and are numbered anew
SHOWN = 12  # classes in a note


@dataclass(frozen=True, kw_only=True)
class Columns:
    """`values`: of images or latents. `label`: None in a set of one class."""

    values: str
    label: str | None

    @classmethod
    def of(cls, schema: pa.Schema, file: str) -> Columns:
        """The columns by the names that are usual. Raises DataError if there is none, or more than one, for the images."""
        values = [name for name in (*IMAGE_NAMES, LATENT) if name in schema.names]
        labels = [name for name in LABEL_NAMES if name in schema.names]
        if len(values) != 1:
            wanted = f"one of {', '.join(IMAGE_NAMES)} or {LATENT}"
            raise DataError(f"{file} has the columns {', '.join(schema.names)}; it needs {wanted}, and label")
        (name,) = values
        if name != LATENT and not _holds_bytes(schema.field(name).type):
            raise DataError(f"{file}: its images are {schema.field(name).type}; they must be encoded images as bytes")
        return cls(values=name, label=labels[0] if labels else None)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        inner = kind.get_field_index("bytes")
        return inner >= 0 and (_holds_bytes(kind.field(inner).type) or pa.types.is_null(kind.field(inner).type))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def check_has_bytes(opened: parquet.ParquetFile, columns: Columns, file: str) -> None:
    """Raises DataError for images that are only named: their files may be elsewhere on the machines that train."""
    if columns.values == LATENT or not opened.metadata.num_rows:
        return
    try:
        first = next(opened.iter_batches(batch_size=1, columns=[columns.values]))[columns.values][0].as_py()
    except (pa.ArrowException, OSError, StopIteration):
        return  # a damaged page is named when it is read
    if isinstance(first, dict) and first.get("bytes") is None and first.get("path"):
        raise DataError(
            f"{file} names its images ({first['path']}) and does not hold them; embed them "
            "(`datasets`: embed_table_storage before to_parquet), or use imagefolder:"
        )


def labels_in(opened: parquet.ParquetFile, columns: Columns, file: str) -> pa.Array:
    """The labels of a file's rows as they are written. Raises DataError for rows without one, or of another kind."""
    if columns.label is None:
        return pa.array(np.zeros(opened.metadata.num_rows, dtype=np.int64))
    column = opened.read(columns=[columns.label])[columns.label].combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    missing = column.is_null(nan_is_null=True).true_count  # pandas writes a missing number as NaN
    if missing:
        raise DataError(f"{file}: {missing} of {len(column)} rows have no {columns.label}; remove them or label them")
    kind = column.type
    if pa.types.is_floating(kind):
        values = column.to_numpy(zero_copy_only=False)
        if not np.all(np.isfinite(values) & (values == np.floor(values))):
            raise DataError(f"{file}: its column {columns.label} holds fractions; labels are whole numbers or names")
        return pa.array(values.astype(np.int64))
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return column.cast(pa.int64())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.cast(pa.string())
    raise DataError(f"{file}: its column {columns.label} is {kind}; labels are whole numbers or names")


def number_labels(parts: list[pa.Array], columns: Columns, path: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers (N,), int64, and what is said of them. Names are numbered in alphabetical order, over all files."""
    kinds = {part.type for part in parts}
    if len(kinds) > 1:
        raise DataError(f"{path}: labels are {' and '.join(map(str, kinds))} in different files; write them alike")
    values = np.concatenate([part.to_numpy(zero_copy_only=False) for part in parts])
    notes = [] if columns.label else ["it has no column of labels, so it is one class"]
    if columns.label not in (None, "label"):
        notes.append(f"labels are those of its column {columns.label}")
    distinct = np.unique(values)
    if pa.string() in kinds:
        notes.append(f"classes in alphabetical order: {_listed(distinct)}")
        return np.searchsorted(distinct, values).astype(np.int64), tuple(notes)
    if distinct[0] < 0:
        raise DataError(f"{path}: label {distinct[0]} is negative")
    if distinct[-1] + 1 - len(distinct) > MAX_UNUSED:
        notes.append(f"{len(distinct)} classes numbered anew, as their labels go up to {distinct[-1]}: {_listed(distinct)}")
        return np.searchsorted(distinct, values).astype(np.int64), tuple(notes)
    return values.astype(np.int64), tuple(notes)


def _listed(names: np.ndarray) -> str:
    shown = ", ".join(f"{number} = {name}" for number, name in enumerate(names[:SHOWN]))
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
