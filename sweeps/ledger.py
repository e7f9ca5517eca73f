"""The storage ledger of a sweep: what must be kept to initialize any size, and what to serve each point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sweeps.pareto import Results
from trainables.files import BANK_FILE, DELTA_FILE, LEARNGENE_FILE, MODEL_FILE
from trainables.spec import FineSpec, JobSpec, TransferSpec, TrialSpec
from trainables.store import Store


def ledger_rows(results: Results, store: Store) -> list[dict[str, Any]]:
    """One row per kept file, bytes as measured when it was stored. What a method shares is counted once.

    A transfer needs its base model beside its delta: the base is a row of its initialization's, not of every transfer's.
    """
    rows = []
    methods = {_method(job) for job, _ in results}
    for method in sorted(methods):
        members = [(job, record) for job, record in results if _method(job) == method]
        shared = {need.id: need for job, _ in members for need in _kept_to_initialize(job)}
        for need in shared.values():
            rows.append(_row(method, "initialize", need.label, store.read_record(need), _FILES[need.kind]))
        for size in sorted({job.size for job, _ in members}, key=lambda s: (s.depth, s.width)):
            # Seeds are repeats of the same point; one of them is served.
            job, record = next((job, record) for job, record in members if job.size == size)
            what = "dense weights" if isinstance(job, TrialSpec) else f"delta to {job.base.initialization.name} {size.name}"
            rows.append(_row(method, "serve", f"{size.name}, {what}", record, _FILES[job.kind]))
    return rows


_FILES = {"learngene": LEARNGENE_FILE, "bank": BANK_FILE, "trial": MODEL_FILE, "transfer": DELTA_FILE}


def _method(job: TrialSpec | TransferSpec) -> str:
    if isinstance(job, TrialSpec):
        return job.initialization.name
    return f"{job.method_label} from {job.initialization.name}"


def _kept_to_initialize(job: TrialSpec | TransferSpec) -> list[JobSpec]:
    """The artifacts that a point's method shares among its points."""
    if isinstance(job, TransferSpec):
        return [] if job.bank is None else [job.bank]
    return [job.initialization.learngene] if isinstance(job.initialization, FineSpec) else []


def _row(method: str, role: str, item: str, record: dict[str, Any], file: str) -> dict[str, Any]:
    return {"method": method, "role": role, "item": item, "bytes": record["files"][file]["bytes"]}


def ledger_totals(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Bytes by method and role."""
    totals: dict[str, dict[str, int]] = {}
    for row in rows:
        roles = totals.setdefault(row["method"], {"initialize": 0, "serve": 0})
        roles[row["role"]] += row["bytes"]
    return totals
