"""What a search may choose about a transfer, and the file in which its best choices travel to a grid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainables.initializations import initialization
from trainables.methods import resolve
from trainables.specs.base import check
from trainables.specs.options import Options, from_values, named, to_values

FILE_FORMAT = 2
# names in files of format 1, which had one list of settings for all methods
NAMES_OF_FORMAT_1 = {
    "schedule": "diff-tuning.schedule",
    "retention_weight": "diff-tuning.retention_weight",
    "source_ratio": "diff-tuning.source_ratio",
    "gamma_span": "difffit.gamma_span",
    "sigma_steps": "fine.sigma_steps",
}


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """The learning rate and the options of a method. `start`: options of the initialization in the place of the grid's."""

    lr: float
    options: tuple[Options, ...]
    start: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """All values by their plain names."""
        own = {item.name: getattr(one, item.name) for one in self.options for item in one.fields()}
        return {**own, "lr": self.lr, **self.start}


@dataclass(frozen=True, kw_only=True)
class TunedTransfer:
    """The settings that a search found for one method, initialization and size."""

    method: str
    initialization: str
    size: str
    settings: TransferSettings

    def to_json(self) -> dict[str, Any]:
        start = {named(self.initialization, name): value for name, value in self.settings.start.items()}
        values = {"lr": self.settings.lr, **to_values(self.settings.options), **start}
        return {"method": self.method, "initialization": self.initialization, "size": self.size, "settings": values}


def write_tuned(path: Path, found: Sequence[tuple[TunedTransfer, dict[str, Any]]]) -> Path:
    """Write what was found, each with the facts of how (score, protocol, study)."""
    entries = [{**tuned.to_json(), "found": facts} for tuned, facts in found]
    path.write_text(json.dumps({"format": FILE_FORMAT, "tuned": entries}, indent=1) + "\n")
    return path


def read_tuned(path: Path) -> tuple[TunedTransfer, ...]:
    """Raises ValueError for a file that is not one of a search's."""
    try:
        content = json.loads(path.expanduser().read_text())
        version = content["format"]
        check(version in (1, FILE_FORMAT), f"its format is {version}, this version reads 1 and {FILE_FORMAT}")
        found = tuple(_tuned_from(entry) for entry in content["tuned"])
        check(bool(found), "it holds no settings")
    except OSError as error:
        raise ValueError(f"schedules file {str(path)!r} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{str(path)!r} is not a best.json of schedule_search.py ({reason})") from error
    except ValueError as error:
        raise ValueError(f"schedules file {str(path)!r}: {error}") from error
    return found


def _tuned_from(entry: dict[str, Any]) -> TunedTransfer:
    values = {NAMES_OF_FORMAT_1.get(name, name): value for name, value in entry["settings"].items() if value is not None}
    lr = values.pop("lr")
    check(isinstance(lr, float | int), f"lr is {lr!r}; it must be a number")
    (method, fixed), start = resolve(entry["method"]), initialization(entry["initialization"])
    chosen = {name.partition(".")[2]: value for name, value in values.items() if name.startswith(f"{start.name}.")}
    if start.options is not None and chosen:
        start.options(**chosen)  # raises ValueError for a value that it cannot have
    options = tuple(from_values(kind, {**fixed, **values}) for kind in method.options)
    settings = TransferSettings(lr=lr, options=options, start=chosen)
    return TunedTransfer(method=method.name, initialization=start.name, size=entry["size"], settings=settings)


def tuned_for_size(tuned: Sequence[TunedTransfer], initialization: str, size: str) -> list[TunedTransfer]:
    """One entry per method for base models of an initialization at one size.

    What was found at a single size serves all sizes; else each size needs its own. Raises ValueError where it is missing.
    """
    chosen = []
    for method in dict.fromkeys(entry.method for entry in tuned if entry.initialization == initialization):
        by_size = {e.size: e for e in tuned if (e.method, e.initialization) == (method, initialization)}
        entry = by_size.get(size) or (next(iter(by_size.values())) if len(by_size) == 1 else None)
        check(
            entry is not None,
            f"the schedules file has no settings of {method} for {size}, only for {', '.join(by_size)}; search that size too",
        )
        chosen.append(entry)
    return chosen
