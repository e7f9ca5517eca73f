"""What a search may choose about a transfer, and the file in which its best choices travel to a grid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fine_core.retention import RetentionSchedule
from trainables.specs.base import check

FILE_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """`lr` is the method's own. `sigma_steps` belongs to the base model: None keeps the grid's.

    What a method does not use stands here all the same, and does not reach its spec.
    """

    schedule: RetentionSchedule | None
    retention_weight: float
    source_ratio: float
    gamma_span: float
    lr: float
    sigma_steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class TunedTransfer:
    """The settings that a search found for one method, initialization and size."""

    method: str
    initialization: str
    size: str
    settings: TransferSettings


def write_tuned(path: Path, found: Sequence[tuple[TunedTransfer, dict[str, Any]]]) -> Path:
    """Write what was found, each with the facts of how (score, protocol, study)."""
    entries = []
    for tuned, facts in found:
        entry = asdict(tuned)
        schedule = tuned.settings.schedule
        entry["settings"]["schedule"] = None if schedule is None else str(schedule)
        entries.append({**entry, "found": facts})
    path.write_text(json.dumps({"format": FILE_FORMAT, "tuned": entries}, indent=1) + "\n")
    return path


def read_tuned(path: Path) -> tuple[TunedTransfer, ...]:
    """Raises ValueError for a file that is not one of a search's."""
    try:
        content = json.loads(path.expanduser().read_text())
        check(content["format"] == FILE_FORMAT, f"its format is {content['format']}, this version reads {FILE_FORMAT}")
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
    settings = TransferSettings(**entry["settings"])
    for name in ("retention_weight", "source_ratio", "gamma_span", "lr"):
        check(isinstance(getattr(settings, name), float | int), f"{name} is {getattr(settings, name)!r}; it must be a number")
    check(0 <= settings.gamma_span <= 1, f"gamma_span is {settings.gamma_span}; it must be between 0 and 1")
    steps, schedule = settings.sigma_steps, settings.schedule
    check(steps is None or isinstance(steps, int), f"sigma_steps is {steps!r}; it must be a whole number or null")
    check(schedule is None or isinstance(schedule, str), f"schedule is {schedule!r}; it must be a text or null")
    if settings.schedule is not None:
        settings = replace(settings, schedule=RetentionSchedule.parse(settings.schedule))
    return TunedTransfer(**{name: entry[name] for name in ("method", "initialization", "size")}, settings=settings)


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
