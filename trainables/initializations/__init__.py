"""Ways to start a base model, one file each: one registry behind the grid and its command line."""

from __future__ import annotations

from trainables.initializations.base import Initialization, Setting
from trainables.initializations.fine import Fine
from trainables.initializations.given import Given
from trainables.initializations.scratch import Scratch

__all__ = ["INITIALIZATIONS", "Initialization", "Setting", "initialization"]

INITIALIZATIONS: dict[str, Initialization] = {
    one.name: one
    for one in (
        Fine(),
        Scratch(),
        Given(),
    )
}


def initialization(name: str) -> Initialization:
    """Raises ValueError for an unknown initialization."""
    if name not in INITIALIZATIONS:
        raise ValueError(f"unknown initialization {name!r}; choose from {', '.join(INITIALIZATIONS)}")
    return INITIALIZATIONS[name]
