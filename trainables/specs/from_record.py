"""Specs back from the records that hold them as JSON. A spec that comes back has the id that it had."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from trainables.specs.base import FileSpec, JobSpec, SourceSpec, VaeSpec
from trainables.specs.models import LearngeneSpec, TrialSpec
from trainables.specs.scorers import ExtractorSpec
from trainables.specs.transfers import BankSpec, CurveSpec, RungSpec, TransferSpec

KINDS = {
    spec.kind: spec
    for spec in (
        BankSpec,
        CurveSpec,
        ExtractorSpec,
        FileSpec,
        LearngeneSpec,
        RungSpec,
        SourceSpec,
        TransferSpec,
        TrialSpec,
        VaeSpec,
    )
}


def job_from_record(record: dict[str, Any]) -> JobSpec | None:
    """The job that a record belongs to; None if it is of another version of the specs, whose numbers may be others."""
    try:
        job = _read(KINDS[record["kind"]], record["spec"])
    except (KeyError, TypeError, ValueError):
        return None
    return job if job.id == record["id"] else None


def _read(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    if get_origin(hint) in (Union, UnionType):
        options = [option for option in get_args(hint) if option is not NoneType]
        return _read(_matching(options, value), value)
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        return tuple(_read(item, part) for part in value)
    if not is_dataclass(hint):
        return value
    spec = _matching([hint, *hint.__subclasses__()], value)
    hints = get_type_hints(spec)
    return spec(**{field.name: _read(hints[field.name], value[field.name]) for field in fields(spec) if field.init})


def _matching(options: list[Any], value: Any) -> Any:
    """The one of several types that a value is of: specs are told apart by their fields."""
    if not isinstance(value, dict):
        return options[0]
    for option in options:
        candidates = [option, *option.__subclasses__()] if is_dataclass(option) else []
        for candidate in candidates:
            names = {field.name for field in fields(candidate)}
            constants = {field.name: field.default for field in fields(candidate) if not field.init}
            if names == set(value) and all(value[name] == constant for name, constant in constants.items()):
                return candidate
    raise ValueError(f"nothing known has the fields {sorted(value)}")
