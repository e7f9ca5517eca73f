"""Options of methods and initializations on the command line: `--difffit-gamma-span`, from the class that has `gamma_span`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import Field
from typing import Any

import click

from sweeps.command_line.parsing import RenamedOption
from sweeps.command_line.presets import PRESETS
from sweeps.planning.chosen import ChosenOptions
from trainables.specs.options import Options, named


def parameter_name(whole_name: str) -> str:
    """The name of an option among a command's parameters."""
    return whole_name.replace(".", "_").replace("-", "_")


def flag_name(whole_name: str) -> str:
    """How an option is written on the command line."""
    return f"--{parameter_name(whole_name).replace('_', '-')}"


def click_option(kind: type[Options], item: Field[Any], *, several: bool) -> Callable[[Callable], Callable]:
    """The option of the command line. `several`: whether it takes several values, each of which makes a point."""
    name = named(kind.group, item.name)
    text = f"{kind.group}: {item.metadata['help']}."
    if item.metadata["choices"]:
        text += f"  [{'|'.join(item.metadata['choices'])}]"
    return click.option(
        flag_name(name),
        parameter_name(name),
        cls=RenamedOption,
        old_names=item.metadata["old_names"],
        metavar=_metavar(type(item.default), several),
        callback=_parser(type(item.default), several),
        default=str(item.default),
        show_default="the preset's" if any(name in preset.options for preset in PRESETS.values()) else True,
        help=text,
    )


def _metavar(kind: type, several: bool) -> str:
    metavar = {int: "INTEGER", float: "FLOAT", str: "TEXT"}[kind]
    return f"{metavar},..." if several else metavar


def _parser(kind: type, several: bool) -> Callable[[click.Context, click.Parameter, Any], tuple[Any, ...]]:
    def parse(context: click.Context, parameter: click.Parameter, value: Any) -> tuple[Any, ...]:
        texts = [part.strip() for part in str(value).split(",")] if several else [str(value)]
        try:
            return tuple(dict.fromkeys(kind(text) for text in texts))
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise click.BadParameter(f"{value!r} is not {what}{' or a list of them' if several else ''}") from None

    return parse


def chosen_options(options: dict[str, Any], kinds: Sequence[type[Options]]) -> ChosenOptions:
    """What the command line says of these classes' options."""
    names = [named(kind.group, item.name) for kind in kinds for item in kind.fields()]
    return ChosenOptions(values={name: options[parameter_name(name)] for name in names})
