"""What is said when a running sweep cannot go on."""

from __future__ import annotations

import re


class StoppedSweep(RuntimeError):
    """Something outside that a running sweep cannot do without went away."""


def last_line(text: str) -> str:
    """The last line that says something: of a traceback, what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "ended without a result"


def without_password(text: str) -> str:
    """A text with URLs as it may be shown."""
    return re.sub(r"://[^@/\s]*@", "://***@", text)
