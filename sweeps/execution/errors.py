"""What is said when a running sweep cannot go on."""

from __future__ import annotations


class StoppedSweep(RuntimeError):
    """Something outside that a running sweep cannot do without went away."""
