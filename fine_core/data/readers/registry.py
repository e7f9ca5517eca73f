"""Formats of images on disk, by the word that names them: `imagefolder:PATH`."""

from __future__ import annotations

from collections.abc import Callable

from fine_core.data.readers.base import Reader, Wanted
from fine_core.data.readers.folder import FolderReader


def _parquet(path: str, wanted: Wanted) -> Reader:
    from fine_core.data.readers.parquet import ParquetReader  # imported late: some training machines have no pyarrow

    return ParquetReader(path, wanted)


# word -> opens a path; raises DataError if it cannot be used
READERS: dict[str, Callable[[str, Wanted], Reader]] = {
    "imagefolder": FolderReader,
    "parquet": _parquet,
}


def formats(join: str = " or ") -> str:
    """The formats as a user writes them."""
    return join.join(f"{kind}:PATH" for kind in READERS)
