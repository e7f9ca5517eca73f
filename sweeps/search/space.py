"""The space of a schedule search: what a point chooses, which choices depend on others, and how points are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import optuna

from sweeps.planning.settings import TransferSettings
from trainables.initializations import INITIALIZATIONS, initialization
from trainables.methods import TRANSFER_METHODS, transfer_method
from trainables.specs.base import check
from trainables.specs.options import Choice, Options, Parameter, Point, Range

LR = "lr"
LR_DECADES = (-1.0, 0.5)  # around the method's own learning rate
AT_SIZE = "@"  # gamma_span@L4-D64: a parameter that exists at one size only
ANY_STEPS = 1  # of a training, where only names matter


def suggest(parameter: Parameter, trial: optuna.Trial) -> Any:
    """Let Optuna choose a value."""
    if isinstance(parameter, Choice):
        return trial.suggest_categorical(parameter.name, parameter.values)
    choose = trial.suggest_int if parameter.integer else trial.suggest_float
    return choose(parameter.name, parameter.low, parameter.high, log=parameter.log)


@dataclass(frozen=True, kw_only=True)
class SearchedOption:
    """What a search chooses: the learning rate (`kind` None), or an option of the method or, if `is_start`, of the
    initialization. `first`: the parameter that is there whenever the option is chosen."""

    name: str
    kind: type[Options] | None = None
    is_start: bool = False
    first: str


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Parameters in the order in which they are drawn: one that depends on another comes after it.

    `options`: what they choose. What is not searched keeps the value that it has in `default`.
    """

    parameters: tuple[Parameter, ...]
    options: tuple[SearchedOption, ...]
    default: TransferSettings

    def _present(self, parameter: Parameter, point: Point) -> bool:
        return parameter.only_if is None or point.get(parameter.only_if[0]) == parameter.only_if[1]

    def suggest(self, trial: optuna.Trial) -> Point:
        point: Point = {}
        for parameter in self.parameters:
            if self._present(parameter, point):
                point[parameter.name] = suggest(parameter, trial)
        return point

    def settings(self, point: Point) -> TransferSettings:
        """The settings that a point stands for: its numbers to three digits, as people read and repeat them."""
        default = self._values_of(self.default)
        plain = {_plain(name): value for name, value in point.items()}
        readable = {
            name: _rounded(value, 3) if isinstance(value, float) and value != default.get(name) else value
            for name, value in plain.items()
        }
        chosen = [option for option in self.options if option.first in readable]
        changes = {o.name: readable[LR] if o.kind is None else o.kind.value_at(o.name, readable) for o in chosen}
        return self._changed(self.default, changes)

    def _changed(self, settings: TransferSettings, changes: Mapping[str, Any]) -> TransferSettings:
        """Settings with other values of searched options, by their plain names."""
        own = {option.name: option for option in self.options if option.name in changes}
        options = []
        for one in settings.options:
            mine = {name: changes[name] for name, option in own.items() if option.kind is type(one) and not option.is_start}
            options.append(replace(one, **mine).canonical())
        start = {name: changes[name] for name, option in own.items() if option.is_start}
        return TransferSettings(lr=changes.get(LR, settings.lr), options=tuple(options), start={**settings.start, **start})

    def _values_of(self, settings: TransferSettings) -> Point:
        """The value of every parameter under `settings`, including parameters that do not exist at this point."""
        point: Point = {LR: settings.lr, **settings.start}
        for one in settings.options:
            for option in self.options:
                if option.kind is type(one) and not option.is_start:
                    point |= one.point_of(option.name)
        return point

    def default_at(self, size: str) -> TransferSettings:
        """The default, or what a limit leaves of it: the largest value of an option that is allowed at the size."""
        changes = {}
        for option in self.options:
            names = (option.first, f"{option.first}{AT_SIZE}{size}")
            allowed = next((p.values for p in self.parameters if isinstance(p, Choice) and p.name in names), None)
            value = self._values_of(self.default).get(option.first)
            if allowed is not None and value not in allowed:
                changes[option.name] = max(allowed, key=lambda one, value=value: (one <= value, one))
        return self._changed(self.default, changes)

    def point(self, settings: TransferSettings, size: str) -> Point:
        """The point that stands for settings. Raises ValueError if they lie outside the space."""
        values = {"size": size, **self._values_of(settings)}
        point: Point = {}
        for parameter in self.parameters:
            if self._present(parameter, point):
                value = values[_plain(parameter.name)]
                check(parameter.holds(value), f"{parameter.name} {value} is outside its search range: {parameter}")
                point[parameter.name] = value
        return point

    def can_choose(self, settings: TransferSettings, size: str) -> bool:
        """Whether a point stands for settings, exactly."""
        try:
            return self.settings(self.point(settings, size)) == settings
        except ValueError:
            return False

    def known_point(self, text: str, only_size: str | None) -> Point:
        """Read a point to try, such as `schedule=power:0.5,retention_weight=1`; what it leaves out is as in `default`.

        `only_size`: None where the size is searched, and the point must name one. Raises ValueError for a point outside the
        space.
        """
        searched = {option.name for option in self.options} | ({"size"} if only_size is None else set())
        changes: dict[str, Any] = {}
        for part in text.split(","):
            name, _, value = (piece.strip() for piece in part.partition("="))
            check(
                name in searched and value,
                f"{part.strip()!r} of a point to try is not NAME=VALUE of {', '.join(sorted(searched))}",
            )
            changes[name] = value if name == "size" else _read(name, value, self.default.plain()[name])
        size = changes.pop("size", only_size)
        check(size is not None, f"{text!r} names no size, which is searched here: add size=L4-D64 or another")
        asked = self._changed(self.default_at(size), changes)
        point = self.point(asked, size)
        check(self.settings(point) == asked, f"{text!r} has numbers of more than three digits, which a search rounds to")
        return point

    def description(self) -> list[dict[str, Any]]:
        """Plain data that two equal spaces have in common, and no others."""
        return [{"kind": type(parameter).__name__, **asdict(parameter)} for parameter in self.parameters]


def build_space(
    *,
    method: str,
    start: str,
    default: TransferSettings,
    start_options: Options | None,
    base_steps: int,
    searched: Sequence[str] | None,
    allowed: Mapping[str, Mapping[str, tuple[Any, ...]]],
    artifacts: bool = False,
) -> SearchSpace:
    """The space of a method on base models of an initialization, which train for `base_steps` with `start_options`.

    `searched`: names of options, or None for all that the method has. `allowed`: at each size, the values of options that
    change what is stored; the size itself is searched if there are several. `artifacts`: see `options_to_search`. Raises
    ValueError if a name is unknown or the method does not have it.
    """
    has = options_to_search(method, start, artifacts=artifacts)
    for name in searched or ():
        check(name in PARAMETERS, f"unknown parameter {name!r}; choose from {', '.join(PARAMETERS)}")
        check(name in has, f"{method} from {start} has no {name}; it has {', '.join(has)}")
    chosen = [option for name, option in has.items() if searched is None or name in searched]
    parameters: list[Parameter] = [Choice(name="size", values=tuple(allowed))] if len(allowed) > 1 else []
    for option in chosen:
        if all(option.name in values for values in allowed.values()):
            parameters += _at_sizes(option.name, {size: values[option.name] for size, values in allowed.items()})
        elif option.kind is None:
            low, high = (_rounded(default.lr * 10**decades, 2) for decades in LR_DECADES)
            parameters.append(Range(name=LR, low=low, high=high, log=True))
        elif option.is_start:
            parameters += start_options.search(option.name, steps=base_steps) if start_options is not None else ()
        else:
            own = next(one for one in default.options if type(one) is option.kind)
            parameters += own.search(option.name, steps=base_steps)
    check(bool(parameters), f"{method} from {start} has nothing to search")
    return SearchSpace(parameters=tuple(parameters), options=tuple(chosen), default=default)


def options_to_search(method: str, start: str, *, artifacts: bool = False) -> dict[str, SearchedOption]:
    """What may be searched of a method on base models of an initialization, in the order in which it is drawn.

    `artifacts`: with what needs another artifact for each of its values.
    """
    own = initialization(start).options
    found = [option for kind in transfer_method(method).options for option in _searched_of(kind)]
    found += [SearchedOption(name=LR, first=LR)]
    if own is not None:
        costly = {item.name for item in own.fields() if item.metadata["changes_artifact"]}
        listed = [option for option in _searched_of(own) if _is_listed(own, option)]
        found += [replace(option, is_start=True) for option in listed if artifacts or option.name not in costly]
    return {option.name: option for option in found}


def _is_listed(kind: type[Options], option: SearchedOption) -> bool:
    """Whether its values are known beforehand: base models of all of them are made before the trials that ask for them."""
    return all(isinstance(parameter, Choice) for parameter in kind().search(option.name, steps=ANY_STEPS))


def _searched_of(kind: type[Options]) -> list[SearchedOption]:
    found = [(item.name, kind().search(item.name, steps=ANY_STEPS)) for item in kind.fields()]
    return [SearchedOption(name=name, kind=kind, first=parameters[0].name) for name, parameters in found if parameters]


PARAMETERS = tuple(
    dict.fromkeys(n for m in TRANSFER_METHODS for s in INITIALIZATIONS for n in options_to_search(m, s, artifacts=True))
)


def _at_sizes(name: str, allowed: Mapping[str, tuple[Any, ...]]) -> list[Choice]:
    """One parameter, or one per size if the size is searched: a limit on bytes may allow them different values."""
    if len(allowed) == 1:
        return [Choice(name=name, values=next(iter(allowed.values())))]
    return [Choice(name=f"{name}{AT_SIZE}{size}", values=values, only_if=("size", size)) for size, values in allowed.items()]


def _plain(name: str) -> str:
    return name.partition(AT_SIZE)[0]


def _read(name: str, text: str, present: Any) -> Any:
    """A value of the same type as the present one."""
    try:
        return type(present)(text)
    except ValueError:
        raise ValueError(f"{name}={text} of a point to try is not a number") from None


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
