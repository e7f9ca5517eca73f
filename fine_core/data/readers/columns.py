"""The columns of a table of images: which hold images and labels, and what can be known of them before they are read."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from fine_core.data.readers.base import MAX_CORRUPT_SHARE, Wanted
from fine_core.data.readers.labels import LABEL_NAMES, whole_numbers
from fine_core.data.source import DataError

LATENT = "latent"
IMAGE_NAMES = ("image", "img", "images", "jpg", "png")
EMBED = "embed them (`datasets`: embed_table_storage before to_parquet), or use imagefolder:"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """`values`: of images or latents. `label`: None in a set without labels."""

    values: str
    label: str | None

    @classmethod
    def of(cls, schema: pa.Schema, file: str, wanted: Wanted) -> Columns:
        """The columns that are wanted, or those with usual names. Raises DataError if they are not there, or unclear."""
        for name in (wanted.image_column, wanted.label_column):
            if name is not None and name not in schema.names:
                raise DataError(f"{file} has no column {name!r}; it has {', '.join(schema.names)}")
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if twice:
            raise DataError(f"{file} has several columns called {', '.join(twice)}; name them apart")
        usual = (*IMAGE_NAMES, LATENT)
        values = [wanted.image_column] if wanted.image_column else [name for name in usual if name in schema.names]
        labels = [wanted.label_column] if wanted.label_column else [name for name in LABEL_NAMES if name in schema.names]
        if len(values) != 1:
            has = f"{file} has the columns {', '.join(schema.names)}"
            raise DataError(f"{has}; which one holds the images? Name it with --image-column")
        (name,) = values
        if name != LATENT and not _holds_bytes(schema.field(name).type):
            raise DataError(f"{file}: its images are {schema.field(name).type}; they must be encoded images as bytes")
        return cls(values=name, label=labels[0] if labels else None)


def common_columns(found: list[Columns], files: list[str]) -> Columns:
    """Those of all files. Raises DataError if they differ."""
    for columns, file in zip(found, files, strict=True):
        if columns != found[0]:
            what = " and ".join(filter(None, (columns.values, columns.label or "no label")))
            other = " and ".join(filter(None, (found[0].values, found[0].label or "no label")))
            raise DataError(f"{file} has {what}, but {files[0]} has {other}; write them alike, or name one file")
    return found[0]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        inner = kind.get_field_index("bytes")
        return inner >= 0 and (_holds_bytes(kind.field(inner).type) or pa.types.is_null(kind.field(inner).type))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def check_has_bytes(opened: parquet.ParquetFile, columns: Columns, file: str) -> None:
    """Raises DataError for images that are missing, or only named: their files may be elsewhere on the machines that train.

    The first row is read; of the others the file's own count of missing values is taken, where it has one.
    """
    rows = opened.metadata.num_rows
    if columns.values == LATENT or not rows:
        return
    try:
        first = next(opened.iter_batches(batch_size=1, columns=[columns.values]))[columns.values][0].as_py()
    except (pa.ArrowException, OSError, StopIteration):
        return  # a damaged page is named when it is read
    if isinstance(first, dict) and first.get("bytes") is None:
        named = f"names its images ({first['path']}) and does" if first.get("path") else "does"
        raise DataError(f"{file} {named} not hold them; {EMBED}")
    missing = _missing(opened.metadata, columns.values)
    if missing > max(1, MAX_CORRUPT_SHARE * rows):
        raise DataError(f"{file}: {missing} of {rows} images are missing or only named; {EMBED}")


def _missing(metadata: parquet.FileMetaData, column: str) -> int:
    """How many images have no bytes, by the statistics of the file."""
    count = 0
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            if chunk.path_in_schema in (column, f"{column}.bytes") and chunk.is_stats_set and chunk.statistics.has_null_count:
                count += chunk.statistics.null_count
    return count


def labels_in(opened: parquet.ParquetFile, columns: Columns, file: str) -> np.ndarray:
    """The labels of a file's rows as they are written. Raises DataError for rows without one, or of another kind."""
    if columns.label is None:
        return np.zeros(opened.metadata.num_rows, dtype=np.int64)
    column = opened.read(columns=[columns.label])[columns.label].combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    missing = column.is_null(nan_is_null=True).true_count  # pandas writes a missing number as NaN
    if missing:
        raise DataError(f"{file}: {missing} of {len(column)} rows have no {columns.label}; remove them or label them")
    kind = column.type
    if pa.types.is_floating(kind):
        return whole_numbers(column.to_numpy(zero_copy_only=False), f"{file}: its column {columns.label}")
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return column.to_numpy(zero_copy_only=False)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(column.to_pylist(), dtype=object)
    raise DataError(f"{file}: its column {columns.label} is {kind}; labels are whole numbers or names")


def class_names(schema: pa.Schema, column: str | None) -> list[str]:
    """The names of the class numbers, where Hugging Face's `datasets` has left them in the schema."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, TypeError, ValueError):
        return []
