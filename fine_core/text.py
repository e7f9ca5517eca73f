"""Texts as they may be shown."""

from __future__ import annotations

import re


def without_password(text: str) -> str:
    """A line with what stands before the host of a URI hidden, up to the last `@`: passwords may have any character."""
    return re.sub(r"://.*@", "://***@", text)
