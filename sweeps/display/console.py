"""The console that all commands print to."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console

LOG_WIDTH = 130


def plain_console(file: TextIO | None = None) -> Console:
    """Texts are printed as they are: names and paths may hold brackets, which would be markup, and numbers get no colours.

    A job's log has no width of its own.
    """
    console = Console(file=file, markup=False, highlight=False)
    return console if console.is_terminal else Console(file=file, markup=False, highlight=False, width=LOG_WIDTH)
