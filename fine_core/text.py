"""Texts as they may be shown, and as parts of names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def without_password(text: str) -> str:
    """A line with what stands before the host of a URI hidden, up to the last `@`: passwords may have any character."""
    return re.sub(r"://.*@", "://***@", text)


def has_login(uri: str) -> bool:
    """Whether a name or a password stands before the host of a URI."""
    return "://" in uri and "@" in uri.partition("?")[0]


def sqlite_uri(path: Path) -> str:
    """The URI of an SQLite database. Raises ValueError for a path that no URI can hold."""
    if "?" in str(path):
        raise ValueError(f"{path} has a ?, which starts a query in a database's URI; name another folder")
    return check_database_uri(f"sqlite:///{path}")


def check_database_uri(uri: str) -> str:
    """The URI. Raises ValueError for an SQLite file that libraries would look for in different places, or write elsewhere."""
    path, _, query = uri.partition("?")
    if uri.startswith("sqlite:") and ("%" in path or "/" in query):
        sign = "%" if "%" in path else "?"
        raise ValueError(f"{uri} has a {sign} in its path, which is an escape or a query in a URI; name another folder")
    return uri


def file_name(text: str) -> str:
    """A text as a part of a file's name: no separators, quotes or wildcards, which file systems and shells take amiss."""
    return re.sub(r"[^\w.+=@-]", "_", text.replace(" ", "-").replace(":", "").replace(",", ""))


def listed(texts: Sequence[object], *, first: int = 3) -> str:
    """The first few of some things, and how many more there are: `a, b, c and 4 more`."""
    rest = len(texts) - first
    return ", ".join(map(str, texts[:first])) + (f" and {rest} more" if rest > 0 else "")
