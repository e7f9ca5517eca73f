"""Images or latents from Parquet files, one row group at a time: memory does not grow with the set."""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import torch
from pyarrow import fs, parquet
from torch import Tensor

from fine_core.data.readers.base import CorruptImages, Wanted, fingerprint_of
from fine_core.data.readers.columns import LATENT, Columns, check_has_bytes, class_names, common_columns, labels_in
from fine_core.data.readers.folder import decode_rows
from fine_core.data.readers.labels import LABEL_NAMES, from_text, number_labels
from fine_core.data.source import LANES, DataError, LatentInfo

METADATA_KEY = b"fine-sweeps"
HELD_GROUPS = 2 * LANES  # row groups in memory: enough for two readers with different orders
MAX_GROUP_BYTES = 2**29
_HIVE = re.compile(r"([A-Za-z_]\w*)=(.*)")
_SPLIT = re.compile(r"(?:^|[-_.])(train|validation|valid|val|dev|test)(?=[-_.0-9])")
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


class ParquetReader:
    """One file, all that a pattern names, or all `*.parquet` of a folder, in alphabetical order.

    Columns: images (encoded bytes, or a struct with `bytes` as Hugging Face's `datasets` writes it) or `latent`, and labels
    (see `columns.py` for their names and kinds). Raises DataError with the file's name if a file cannot be used.
    """

    def __init__(self, path: str, wanted: Wanted) -> None:
        self.filesystem, root = _open_location(path)
        self.files = _parquet_files(self.filesystem, root, path)
        partition = _partition(self.files, wanted)
        self.groups: list[tuple[int, int]] = []  # (file, row group in it)
        sizes, labels, schemas, found = [], [], [], []
        for index, file in enumerate(self.files):
            with self._opened(file) as opened:
                columns = Columns.of(opened.schema_arrow, file, wanted)
                found.append(columns)
                schemas.append(opened.schema_arrow)
                for group in range(opened.metadata.num_row_groups):
                    _check_group_bytes(opened.metadata.row_group(group), file)
                    self.groups.append((index, group))
                    sizes.append(opened.metadata.row_group(group).num_rows)
                check_has_bytes(opened, columns, file)
                labels.append(labels_in(opened, columns, file))
        columns = common_columns(found, self.files)
        if partition is not None and columns.label is None:
            if any(value == NO_VALUE for _, value in partition):
                raise DataError(f"{path} has a folder of rows without a label ({NO_VALUE}); remove it, or label them")
            by_file = from_text([value for _, value in partition])
            labels = [np.full(len(rows), label) for rows, label in zip(labels, by_file, strict=True)]
            columns = replace(columns, label=partition[0][0])
        if not sum(map(len, labels)):
            raise DataError(f"{path} has no rows; name another set")
        names = class_names(schemas[0], columns.label)
        if any(class_names(schema, columns.label) != names for schema in schemas):
            raise DataError(f"{path}: its files have different names for the class numbers; name one file, or write them alike")
        numbers, self.notes = number_labels(labels, path, column=columns.label, names=names)
        self.labels = torch.from_numpy(numbers)
        self.group_sizes = torch.tensor(sizes)
        self.starts = torch.cat([torch.zeros(1, dtype=torch.long), self.group_sizes.cumsum(0)])
        self.column = columns.values
        self.header = _common_header(schemas, self.files) if self.column == LATENT else {}
        self.row_shape = tuple(self.header["shape"]) if self.header else (3, wanted.image_size, wanted.image_size)
        self.dtype = torch.float16 if self.header else torch.uint8
        self.corrupt = CorruptImages(len(self.labels))
        self._held: OrderedDict[int, pa.Array] = OrderedDict()

    def _opened(self, file: str) -> parquet.ParquetFile:
        try:
            return parquet.ParquetFile(file, filesystem=self.filesystem)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(file, error) from error

    @property
    def fingerprint(self) -> str:
        folder = os.path.dirname(os.path.commonprefix(self.files)) if len(self.files) > 1 else os.path.dirname(self.files[0])
        infos = self.filesystem.get_file_info(self.files)
        return fingerprint_of((os.path.relpath(info.path, folder), info.size) for info in infos)

    @property
    def latents(self) -> LatentInfo | None:
        return LatentInfo(**self.header["latents"]) if self.header else None

    def name_of(self, row: int) -> str:
        group = self._group_of(row)
        return f"{os.path.basename(self.files[self.groups[group][0]])} row {row - self._file_start(group)}"

    def _file_start(self, group: int) -> int:
        file = self.groups[group][0]
        return int(self.starts[[index for index, _ in self.groups].index(file)])

    def _group_of(self, row: int) -> int:
        return int(torch.searchsorted(self.starts, row, right=True)) - 1

    def _group(self, index: int) -> pa.Array:
        """The values of a row group. Groups are cached; the least recently used one is dropped."""
        if index not in self._held:
            file, group = self.groups[index]
            with self._opened(self.files[file]) as opened:
                try:
                    values = opened.read_row_group(group, columns=[self.column])[self.column].combine_chunks()
                except (pa.ArrowException, OSError) as error:
                    raise DataError(f"{self.files[file]} is damaged: {str(error).splitlines()[0]}") from error
            if pa.types.is_struct(values.type):
                values = values.field("bytes")
            while len(self._held) >= HELD_GROUPS:
                self._held.popitem(last=False)
            self._held[index] = values
        self._held.move_to_end(index)
        return self._held[index]

    def contents(self, rows: list[int]) -> Iterable[bytes]:
        """The encoded images of `rows`; empty bytes for a missing image."""
        values: list[bytes] = [b""] * len(rows)
        for group, places in self._by_group(rows).items():
            held = self._group(group)
            for place in places:
                values[place] = held[rows[place] - int(self.starts[group])].as_py() or b""
        return values

    def _by_group(self, rows: list[int]) -> dict[int, list[int]]:
        """Indices into `rows` by row group. Cached groups come first, because loading others would drop them."""
        places: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(self._group_of(row), []).append(place)
        return dict(sorted(places.items(), key=lambda item: item[0] not in self._held))

    def read(self, rows: Tensor) -> Tensor:
        if self.column != LATENT:
            return decode_rows(self, rows)
        wanted = rows.tolist()
        found = torch.empty((len(wanted), *self.row_shape), dtype=self.dtype)
        for group, places in self._by_group(wanted).items():
            start, length = int(self.starts[group]), int(np.prod(self.row_shape))
            values = self._group(group).flatten().to_numpy().reshape(-1, length)
            picked = values[[wanted[place] - start for place in places]]
            found[places] = torch.from_numpy(picked).reshape(-1, *self.row_shape)
        return found


def _open_location(path: str) -> tuple[fs.FileSystem, str]:
    try:
        return fs.FileSystem.from_uri(path) if "://" in path else (fs.LocalFileSystem(), str(Path(path).absolute()))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be opened: {str(error).splitlines()[0]}") from error


def _parquet_files(filesystem: fs.FileSystem, root: str, path: str) -> list[str]:
    folder, _, pattern = root.rpartition("/")
    is_there = filesystem.get_file_info(root).type != fs.FileType.NotFound
    if is_there or not any(sign in pattern for sign in "*?["):
        folder, pattern = root, "*.parquet"
    info = filesystem.get_file_info(folder)
    if info.type == fs.FileType.File:
        return [folder]
    if info.type != fs.FileType.Directory:
        raise DataError(f"no such file or folder: {path}")
    entries = sorted(filesystem.get_file_info(fs.FileSelector(folder)), key=lambda entry: entry.path)
    if entries and all(_HIVE.fullmatch(entry.base_name) for entry in entries if not entry.base_name.startswith((".", "_"))):
        below = filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
        entries = sorted(below, key=lambda entry: entry.path)
    found = [e.path for e in entries if e.type == fs.FileType.File and fnmatchcase(e.base_name, pattern)]
    found = [path for path in found if not os.path.basename(path).startswith((".", "_"))]  # as pyarrow and Spark leave out
    if not found:
        below = [entry.base_name for entry in entries if entry.type == fs.FileType.Directory][:3]
        hint = f"; its subfolders are {', '.join(below)}: name one" if below else "; name another folder"
        raise DataError(f"{path} holds no {pattern} file{hint}")
    if folder == root:
        _check_one_split(found, path)
    return found


def _partition(files: list[str], wanted: Wanted) -> list[tuple[str, str]] | None:
    """(column, value) of every file from folders such as `label=cat/`, as Hive and Spark write them; None without."""
    wanted_names = (wanted.label_column,) if wanted.label_column else LABEL_NAMES
    found = []
    for file in files:
        parts = [match for part in file.split("/") if (match := _HIVE.fullmatch(part)) and match[1] in wanted_names]
        found += [(match[1], unquote(match[2])) for match in parts[-1:]]
    return found if len(found) == len(files) else None


def _check_one_split(files: list[str], path: str) -> None:
    """Raises DataError for the shards of several splits, which Hugging Face's `datasets` tells apart by their names."""
    splits = [_SPLIT.search(os.path.basename(file)) for file in files]
    names = sorted({found[1] for found in splits if found}, key=lambda name: (name != "train", name))
    folders = {part for file in files for part in file.split("/")[:-1] if part.startswith("split=")}
    if len(folders) > 1:
        raise DataError(f"{path} holds the splits {', '.join(sorted(folders))}; name the folder of one")
    if len(names) > 1:
        raise DataError(
            f"{path} holds the splits {', '.join(names)}; name one, such as parquet:{path.rstrip('/')}/{names[0]}-*"
        )


def _check_group_bytes(group: Any, file: str) -> None:
    if group.total_byte_size > MAX_GROUP_BYTES:
        raise DataError(
            f"{file} has a row group of {group.total_byte_size:,} bytes, of which {HELD_GROUPS} are held in memory; "
            f"write it again with row groups of at most {MAX_GROUP_BYTES:,} bytes"
        )


def _header(schema: pa.Schema, file: str) -> dict[str, Any]:
    """The latents' description in a file's metadata. Raises DataError if it is missing or does not match the rows."""
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        raise DataError(f"{file} does not say how its latents were made; make them with sweeps/encode_latents.py")
    try:
        header = json.loads(text)
        LatentInfo(**header["latents"])
        length = int(np.prod(header["shape"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} has a damaged description of its latents ({error}); encode it again") from error
    kind = schema.field("latent").type
    if not pa.types.is_fixed_size_list(kind) or kind.list_size != length or kind.value_type != pa.float16():
        raise DataError(f"{file}: its latents are {kind}, its header says {header['shape']} in float16; encode it again")
    return {"shape": header["shape"], "latents": header["latents"]}


def _common_header(schemas: list[pa.Schema], files: list[str]) -> dict[str, Any]:
    """The latents' description that all files share. Raises DataError if they differ."""
    headers = [_header(schema, file) for schema, file in zip(schemas, files, strict=True)]
    for header, file in zip(headers, files, strict=True):
        if header != headers[0]:
            raise DataError(
                f"{file} has latents of another kind than {files[0]}: {header}, not {headers[0]}; keep them in two folders"
            )
    return headers[0]


def latents_of_file(filesystem: fs.FileSystem, path: str) -> tuple[list[int], LatentInfo]:
    """Shape of a row (views, 2, C, h, h) and the latents' description. Raises DataError for a file without latents."""
    try:
        schema = parquet.read_schema(path, filesystem=filesystem)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    if LATENT not in schema.names:
        raise DataError(
            f"{path} has the columns {', '.join(schema.names)}; it needs `latent`, made by sweeps/encode_latents.py"
        )
    header = _header(schema, path)
    return header["shape"], LatentInfo(**header["latents"])


def _unreadable(path: str, error: Exception) -> DataError:
    return DataError(f"{path} is no readable Parquet file: {str(error).splitlines()[0]}")
