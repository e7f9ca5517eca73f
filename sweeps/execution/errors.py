"""What is said when a running sweep cannot go on."""

from __future__ import annotations

import re


class StoppedSweep(RuntimeError):
    """Something outside that a running sweep cannot do without went away."""


def without_password(text: str) -> str:
    """A text with URLs as it may be shown."""
    return re.sub(r"://[^@/\s]*@", "://***@", text)
