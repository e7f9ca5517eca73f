"""The storage ledger of a sweep: what must be kept to initialize any size and to serve each point, and what it took to make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sweeps.planning.names import MethodNames
from sweeps.results.points import Results
from trainables.jobs.kind import Role
from trainables.jobs.registry import kind_of
from trainables.specs.base import JobSpec
from trainables.specs.models import PointSpec
from trainables.storage.record import Record
from trainables.storage.store import Store


def ledger_rows(results: Results, store: Store, names: MethodNames) -> list[dict[str, Any]]:
    """One row per kept file: bytes as measured when it was stored, seconds of its training or sampling.

    What a method's points share is counted once. A transfer needs its base model beside its delta: the base is a row of its
    initialization's, not of every transfer's. Seeds are repeats of the same point; the first of them is kept.
    """
    kept: dict[tuple, tuple[PointSpec, Record]] = {}
    for result in sorted(results, key=lambda result: result.job.seed):
        kept.setdefault((names.of(result.job), result.job.size), (result.job, result.model_record))
    rows = []
    for method in sorted({method for method, _ in kept}):
        members = [pair for (name, _), pair in kept.items() if name == method]
        shared = {need.id: need for job, _ in members for need in _kept_to_initialize(job)}
        rows += [_row(method, "initialize", need, need.label, store.record(need)) for need in shared.values()]
        for job, record in sorted(members, key=lambda pair: (pair[0].size.depth, pair[0].size.width)):
            what = "dense weights" if job.base is job else f"delta to {job.base.initialization.name}"
            rows.append(_row(method, "serve", job, f"{job.size.name}, {what}", record))
    return rows


def _kept_to_initialize(job: PointSpec) -> list[JobSpec]:
    """The artifacts that a point was made from, beside its base model."""
    kept = {need: kind_of(need).kept for need in job.needs}
    return [need for need, file in kept.items() if file is not None and file.role is Role.INITIALIZE]


def _row(method: str, role: str, job: JobSpec, item: str, record: Record) -> dict[str, Any]:
    kept = kind_of(job).kept
    made = {"bytes": record.files[kept.file].bytes, "seconds": record.metrics[kept.seconds]}
    return {"method": method, "role": role, "item": item, **made}


def ledger_totals(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Bytes and seconds by method and role."""
    totals: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        roles = totals.setdefault(row["method"], {role: {"bytes": 0, "seconds": 0.0} for role in ("initialize", "serve")})
        for unit in ("bytes", "seconds"):
            roles[row["role"]][unit] += row[unit]
    return totals
