"""Values of the options of methods and initializations that a grid is made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeVar

from trainables.initializations import INITIALIZATIONS
from trainables.methods import TRANSFER_METHODS
from trainables.specs.base import check
from trainables.specs.options import Options, from_values, named

Kind = TypeVar("Kind", bound=Options)


def options_of_initializations() -> tuple[type[Options], ...]:
    """Every class of options that an initialization has, once."""
    return tuple(dict.fromkeys(one.options for one in INITIALIZATIONS.values() if one.options is not None))


def options_of_methods() -> tuple[type[Options], ...]:
    """Every class of options that a transfer method has, once."""
    return tuple(dict.fromkeys(kind for method in TRANSFER_METHODS.values() for kind in method.options))


@dataclass(frozen=True, kw_only=True)
class ChosenOptions:
    """Values by the options' whole names (`difffit.gamma_span`); what is not named has its default.

    Several values of an option of a transfer method make several points.
    """

    values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def each(self, kind: type[Kind], fixed: Mapping[str, Any]) -> list[Kind]:
        """Options of a class, one for every combination of values. `fixed`: values that nothing changes."""
        names = [name for item in kind.fields() if (name := named(kind.group, item.name)) in {**self.values, **fixed}]
        choices = [(fixed[name],) if name in fixed else self.values[name] for name in names]
        combinations = product(*choices)
        return list(dict.fromkeys(from_values(kind, dict(zip(names, values, strict=True))) for values in combinations))

    def one(self, kind: type[Kind]) -> Kind:
        """Options of a class. Raises ValueError for several values of one."""
        for name, values in self.values.items():
            if name.startswith(f"{kind.group}."):
                check(len(values) == 1, f"{name} has {len(values)} values; it takes one here")
        return self.each(kind, {})[0]

    def changed(self, changes: Mapping[str, Any]) -> ChosenOptions:
        """The same with other values, by their whole names."""
        return ChosenOptions(values={**self.values, **{name: (value,) for name, value in changes.items()}})

    def __str__(self) -> str:
        return ", ".join(f"{name} {' '.join(map(str, values))}" for name, values in self.values.items())
