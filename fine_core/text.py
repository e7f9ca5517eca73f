"""Texts as they may be shown."""

from __future__ import annotations

import re
from collections.abc import Sequence


def without_password(text: str) -> str:
    """A line with what stands before the host of a URI hidden, up to the last `@`: passwords may have any character."""
    return re.sub(r"://.*@", "://***@", text)


def file_name(text: str) -> str:
    """A text as a part of a file's name: no separators, quotes or wildcards, which file systems and shells take amiss."""
    return re.sub(r"[^\w.+=@-]", "_", text.replace(" ", "-").replace(":", "").replace(",", ""))


def listed(texts: Sequence[object], *, first: int = 3) -> str:
    """The first few of some things, and how many more there are: `a, b, c and 4 more`."""
    rest = len(texts) - first
    return ", ".join(map(str, texts[:first])) + (f" and {rest} more" if rest > 0 else "")
