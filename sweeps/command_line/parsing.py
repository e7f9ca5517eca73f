"""Parsing of option values, renamed options, and usage errors in one line."""

from __future__ import annotations

import re
import sys
from typing import Any

import click

BYTE_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def integers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        return tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers such as 2,4,6") from None


def names(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(dict.fromkeys(part.strip() for part in value.split(",")))


def byte_count(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A number of bytes such as 500000, 500kB or 30MB."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", value.strip().lower())
    if match is None or match[2] not in BYTE_UNITS:
        raise click.BadParameter(f"{value!r} is not a number of bytes such as 500000, 500kB or 30MB")
    return round(float(match[1]) * BYTE_UNITS[match[2]])


class RenamedOption(click.Option):
    """An option with a value that was renamed. `old_names` keep working; help and errors show the new name alone."""

    def __init__(self, *args: Any, old_names: tuple[str, ...], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.old_names = old_names

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        super().add_to_parser(parser, ctx)
        # The same parameter under other names: sources, defaults and callbacks cannot tell them apart.
        parser.add_option(obj=self, opts=self.old_names, dest=self.name, action="store", nargs=self.nargs)


class OneLineErrors(click.Command):
    """A command whose usage errors are one line, like its other errors."""

    def main(self, *args: Any, **options: Any) -> Any:
        try:
            return super().main(*args, **{**options, "standalone_mode": False})
        except click.UsageError as error:
            click.echo(f"error: {error.format_message()}", err=True)
            sys.exit(2)
        except click.Abort:  # Ctrl-C before anything was started
            sys.exit(130)
