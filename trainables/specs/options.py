"""Options of methods and initializations: what each has of its own, how it is set, and where a search may look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Self, TypeVar

from trainables.specs.base import TrainingSpec, check

OptionsClass = TypeVar("OptionsClass", bound="Options")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A categorical parameter of a search; `only_if` (name, value) makes it exist only beside that value of another."""

    name: str
    values: tuple[str | int | float, ...]
    only_if: tuple[str, str] | None = None

    def holds(self, value: Any) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return ", ".join(str(value) for value in self.values)


@dataclass(frozen=True, kw_only=True)
class Range:
    """A numeric parameter of a search between two bounds, on a logarithmic scale if `log`."""

    name: str
    low: float
    high: float
    log: bool = False
    integer: bool = False
    only_if: tuple[str, str] | None = None

    def holds(self, value: Any) -> bool:
        number = int if self.integer else (int, float)
        return isinstance(value, number) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{' (log)' if self.log else ''}"


Parameter = Choice | Range
Point = dict[str, Any]  # name of a search parameter -> its value


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    search: Parameter | None = None,
    changes_bytes: bool = False,
    changes_artifact: bool = False,
    label: str | None = None,
    old_names: tuple[str, ...] = (),
) -> Any:
    """A field of an options class.

    `help` is for the command line, `choices` are the allowed texts. `search`: where a search may look by default.
    `changes_bytes`: whether what is stored grows with it. `changes_artifact`: whether each value needs another artifact, made
    once for all sizes: a search looks there only where it is asked to. `label`: format string of the value in labels, at the
    default too. `old_names`: earlier names of the command-line option.
    """
    about = {"help": help, "choices": choices, "search": search, "changes_bytes": changes_bytes}
    about["changes_artifact"] = changes_artifact
    return field(default=default, metadata={**about, "label": label, "old_names": old_names})


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of options. `group` is their prefix on the command line. Every field is made by `option`.

    Equal work has equal values: `canonical` resets an option to its neutral value where other options cancel its effect.
    """

    group: ClassVar[str]

    @classmethod
    def fields(cls) -> tuple[Field[Any], ...]:
        return fields(cls)

    def __post_init__(self) -> None:
        for item in self.fields():
            value, choices = getattr(self, item.name), item.metadata["choices"]
            kind = type(item.default)
            fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
            check(fits and not isinstance(value, bool), f"{item.name} is {value!r}; it must be {_KINDS[kind]}")
            check(not choices or value in choices, f"unknown {item.name} {value!r}; choose one of {', '.join(choices)}")

    def canonical(self) -> Self:
        return self

    def check_training(self, training: TrainingSpec) -> None:
        """Raises ValueError if they do not fit the training that they are of."""

    @property
    def label(self) -> str:
        """What tells points of one method apart: options with a label, and those that are not at their default."""
        parts = []
        for item in self.fields():
            value = getattr(self, item.name)
            if item.metadata["label"] is not None:
                parts.append(item.metadata["label"].format(value))
            elif value != item.default:
                parts.append(f"{item.name.replace('_', ' ')} {value}")
        return " ".join(parts)

    # The view of a search. An option may stand for several parameters, such as a family and its exponent.

    def search(self, name: str, *, steps: int) -> tuple[Parameter, ...]:
        """The parameters of an option around its present value; none if it is not searched. `steps`: of its training."""
        parameter = next(item for item in self.fields() if item.name == name).metadata["search"]
        return () if parameter is None else (parameter,)

    @classmethod
    def value_at(cls, name: str, point: Point) -> Any:
        """The value of an option at a point."""
        return point[name]

    def point_of(self, name: str) -> Point:
        """The point that stands for the present value of an option."""
        return {name: getattr(self, name)}


_KINDS = {str: "a text", int: "a whole number", float: "a number"}


def named(group: str, name: str) -> str:
    """How an option is called where options of several methods stand together: `difffit.gamma_span`."""
    return f"{group}.{name}"


def of_kind(options: Iterable[Options], kind: type[OptionsClass]) -> OptionsClass:
    """The options of one class among others. Raises ValueError if there are none."""
    for one in options:
        if isinstance(one, kind):
            return one
    raise ValueError(f"there are no options of {kind.group}")


def from_values(kind: type[OptionsClass], values: Mapping[str, Any]) -> OptionsClass:
    """Options of a class from values by their whole names; those that are not named have their default."""
    own = {item.name: values[name] for item in kind.fields() if (name := named(kind.group, item.name)) in values}
    return kind(**own).canonical()


def to_values(options: Iterable[Options]) -> dict[str, Any]:
    """Values by their whole names."""
    return {named(one.group, item.name): getattr(one, item.name) for one in options for item in one.fields()}
