"""The space of a schedule search: what a point chooses, which choices depend on others, and how points are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import optuna

from fine_core.retention import FAMILIES, RetentionSchedule
from sweeps.planning.settings import TransferSettings
from trainables.methods import transfer_method
from trainables.specs.base import check

LR_DECADES = (-1.0, 0.5)  # around the method's own learning rate
GAMMA_SPANS = (0.0, 0.25, 0.5, 0.75, 1.0)
SIGMA_STEPS_FACTORS = (0, 1, 2)  # of the grid's own sigma steps
AT_SIZE = "@"  # gamma_span@L4-D64: a parameter that exists at one size only

Point = dict[str, Any]  # name of a parameter -> its value


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A categorical parameter; `only_if` (name, value) makes it exist only beside that value of another."""

    name: str
    values: tuple[str | int | float, ...]
    only_if: tuple[str, str] | None = None

    def suggest(self, trial: optuna.Trial) -> Any:
        return trial.suggest_categorical(self.name, self.values)

    def holds(self, value: Any) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return ", ".join(str(value) for value in self.values)


@dataclass(frozen=True, kw_only=True)
class Range:
    """A numeric parameter between two bounds, on a logarithmic scale if `log`."""

    name: str
    low: float
    high: float
    log: bool = False
    integer: bool = False
    only_if: tuple[str, str] | None = None

    def suggest(self, trial: optuna.Trial) -> Any:
        suggest = trial.suggest_int if self.integer else trial.suggest_float
        return suggest(self.name, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        number = int if self.integer else (int, float)
        return isinstance(value, number) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{' (log)' if self.log else ''}"


# One parameter for every family that has one. Each has a name of its own: a range of `power` means nothing to `cutoff`.
FAMILY_PARAMETERS = (
    Range(name="power", low=0.1, high=3.0, only_if=("family", "power")),
    Range(name="complement", low=0.1, high=3.0, log=True, only_if=("family", "complement")),
    Range(name="cutoff", low=50, high=950, integer=True, only_if=("family", "cutoff")),
)
SETTINGS = ("retention_weight", "source_ratio", "lr", "sigma_steps", "gamma_span")
PARAMETERS = ("family", *SETTINGS)


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Parameters in the order in which they are drawn: one that depends on another comes after it.

    What is not searched keeps the value that it has in `default`.
    """

    parameters: tuple[Choice | Range, ...]
    default: TransferSettings

    def _present(self, parameter: Choice | Range, point: Point) -> bool:
        return parameter.only_if is None or point.get(parameter.only_if[0]) == parameter.only_if[1]

    def suggest(self, trial: optuna.Trial) -> Point:
        point: Point = {}
        for parameter in self.parameters:
            if self._present(parameter, point):
                point[parameter.name] = parameter.suggest(trial)
        return point

    def settings(self, point: Point) -> TransferSettings:
        """The settings that a point stands for: its numbers to three digits, as people read and repeat them."""
        values = {_plain(name): self._readable(_plain(name), value) for name, value in point.items()}
        changes = {name: value for name, value in values.items() if name in SETTINGS}
        if "family" in values:
            family = values["family"]
            number = float(values[family]) if family in values else None  # as parsed from text: equal points, equal ids
            changes["schedule"] = RetentionSchedule(family=family, parameter=number)
        return replace(self.default, **changes)

    def _readable(self, name: str, value: Any) -> Any:
        is_default = value == getattr(self.default, name, None)
        return _rounded(value, 3) if isinstance(value, float) and not is_default else value

    def default_at(self, size: str) -> TransferSettings:
        """The default, or what a limit leaves of it: the largest gamma span that is allowed at the size."""
        names = ("gamma_span", f"gamma_span{AT_SIZE}{size}")
        allowed = next((p.values for p in self.parameters if p.name in names), (self.default.gamma_span,))
        if self.default.gamma_span in allowed:
            return self.default
        return replace(self.default, gamma_span=max(allowed, key=lambda span: (span <= self.default.gamma_span, span)))

    def point(self, settings: TransferSettings, size: str) -> Point:
        """The point that stands for settings. Raises ValueError if they lie outside the space."""
        values: Point = {"size": size} | {name: getattr(settings, name) for name in SETTINGS}
        if settings.schedule is not None:
            family, number = settings.schedule.family, settings.schedule.parameter
            values |= {"family": family, family: int(number) if family == "cutoff" else number}
        point: Point = {}
        for parameter in self.parameters:
            if self._present(parameter, point):
                value = values[_plain(parameter.name)]
                check(parameter.holds(value), f"{parameter.name} {value} is outside its search range: {parameter}")
                point[parameter.name] = value
        return point

    def known_point(self, text: str, only_size: str | None) -> Point:
        """Read a point to try, such as `schedule=power:0.5,retention_weight=1`; what it leaves out is as in `default`.

        `only_size`: None where the size is searched, and the point must name one. Raises ValueError for a point outside the
        space.
        """
        searched = {"schedule" if p.name == "family" else _plain(p.name) for p in self.parameters if p.name not in FAMILIES}
        changes: dict[str, Any] = {}
        for part in text.split(","):
            name, _, value = (piece.strip() for piece in part.partition("="))
            check(
                name in searched and value,
                f"{part.strip()!r} of a point to try is not NAME=VALUE of {', '.join(sorted(searched))}",
            )
            changes[name] = RetentionSchedule.parse(value) if name == "schedule" else _number(name, value)
        size = changes.pop("size", only_size)
        check(size is not None, f"{text!r} names no size, which is searched here: add size=L4-D64 or another")
        asked = replace(self.default_at(size), **changes)
        point = self.point(asked, size)
        check(self.settings(point) == asked, f"{text!r} has numbers of more than three digits, which a search rounds to")
        return point

    def description(self) -> list[dict[str, Any]]:
        """Plain data that two equal spaces have in common, and no others."""
        return [{"kind": type(parameter).__name__, **asdict(parameter)} for parameter in self.parameters]


def build_space(
    *,
    method: str,
    initialization: str,
    default: TransferSettings,
    base_steps: int,
    searched: Sequence[str] | None,
    gamma_spans: Mapping[str, tuple[float, ...]],
) -> SearchSpace:
    """The space of a method on base models of an initialization, which train for `base_steps`.

    `searched`: names among PARAMETERS, or None for all that the method has. `gamma_spans`: those allowed at each size; the
    size itself is searched if there are several. Raises ValueError if a name is unknown or the method does not have it.
    """
    has = _parameters_of(method, initialization)
    for name in searched or ():
        check(name in PARAMETERS, f"unknown parameter {name!r}; choose from {', '.join(PARAMETERS)}")
        check(name in has, f"{method} from {initialization} has no {name}; it has {', '.join(has)}")
    chosen = has if searched is None else [name for name in has if name in searched]
    parameters: list[Choice | Range] = [Choice(name="size", values=tuple(gamma_spans))] if len(gamma_spans) > 1 else []
    for name in chosen:
        match name:
            case "family":
                parameters += [Choice(name="family", values=tuple(FAMILIES)), *FAMILY_PARAMETERS]
            case "retention_weight":
                parameters.append(Range(name=name, low=0.01, high=2.0, log=True))
            case "source_ratio":
                parameters.append(Range(name=name, low=0.05, high=0.5))
            case "lr":
                low, high = (_rounded(default.lr * 10**decades, 2) for decades in LR_DECADES)
                parameters.append(Range(name=name, low=low, high=high, log=True))
            case "sigma_steps":
                values = sorted({min(factor * default.sigma_steps, base_steps) for factor in SIGMA_STEPS_FACTORS})
                parameters.append(Choice(name=name, values=tuple(values)))
            case "gamma_span":
                parameters += _gamma_spans(gamma_spans)
    check(bool(parameters), f"{method} from {initialization} has nothing to search")
    return SearchSpace(parameters=tuple(parameters), default=default)


def _parameters_of(method: str, initialization: str) -> list[str]:
    """What a method has to choose, in the order in which it is drawn."""
    transfer = transfer_method(method)
    applies = {
        "family": transfer.rehearses,
        "retention_weight": transfer.retains,
        "source_ratio": transfer.retains,
        "lr": True,
        "sigma_steps": initialization == "fine",
        "gamma_span": transfer.uses_scales,
    }
    return [name for name in PARAMETERS if applies[name]]


def _gamma_spans(allowed: Mapping[str, tuple[float, ...]]) -> list[Choice]:
    """One parameter, or one per size if the size is searched: a limit on bytes may allow them different spans."""
    if len(allowed) == 1:
        return [Choice(name="gamma_span", values=next(iter(allowed.values())))]
    return [
        Choice(name=f"gamma_span{AT_SIZE}{size}", values=values, only_if=("size", size)) for size, values in allowed.items()
    ]


def _plain(name: str) -> str:
    return name.partition(AT_SIZE)[0]


def _number(name: str, text: str) -> float | int | str:
    if name == "size":
        return text
    try:
        return int(text) if name == "sigma_steps" else float(text)
    except ValueError:
        raise ValueError(f"{name}={text} of a point to try is not a number") from None


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
