"""`metadata.csv` and `metadata.jsonl` beside images, as Hugging Face's image folders have them: `file_name` and columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fine_core.data.readers.labels import LABEL_NAMES
from fine_core.data.source import DataError

NAMES = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"
MISSING = ("", "nan", "none", "null")


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The rows of a table, all values as text."""

    path: Path
    rows: list[dict[str, str]]

    def label_column(self, wanted: str | None) -> str | None:
        """The column of labels: the wanted one, or one with a usual name; None if there is none."""
        names = LABEL_NAMES if wanted is None else (wanted,)
        spellings = {column.strip().lower(): column for row in self.rows for column in row}
        return next((spellings[name.lower()] for name in names if name.lower() in spellings), None)

    @property
    def without_labels(self) -> str:
        """What is said of a table that has no column of labels."""
        columns = sorted({column for row in self.rows for column in row} - {FILE_NAME})
        return f"{self.path.name} is not used: none of its columns ({', '.join(columns)}) is called label; see --label-column"

    def file_names(self, root: Path) -> list[Path]:
        return [root / row[FILE_NAME] for row in self.rows]

    def labels(self, column: str) -> list[str]:
        """Raises DataError for a row without a label."""
        missing = [row[FILE_NAME] for row in self.rows if (row.get(column) or "").strip().lower() in MISSING]
        if missing:
            raise DataError(f"{self.path}: {len(missing)} rows have no {column}, such as {missing[0]}; label or remove them")
        return [row[column].strip() for row in self.rows]


def metadata_of(root: Path, loose: Sequence[Path]) -> Metadata | None:
    """The table in a folder, if one is among its files. Raises DataError if it cannot be read or names no files."""
    path = next((file for name in NAMES for file in loose if file.name == name), None)
    if path is None:
        return None
    try:
        rows = _read(path)
    except (OSError, UnicodeDecodeError, ValueError, csv.Error, AttributeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not rows or any(not row.get(FILE_NAME) for row in rows):
        raise DataError(f"{path} has rows without {FILE_NAME}, the column that names the images; add it, or remove the file")
    return Metadata(path=path, rows=rows)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        if path.suffix == ".csv":
            rows = list(csv.DictReader(file))
            if any(None in row for row in rows):
                raise ValueError("a row has more values than there are columns")
            return rows
        rows = [json.loads(line) for line in file if line.strip()]
    return [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]
