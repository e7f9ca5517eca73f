"""The storage ledger of a sweep: what must be kept to initialize any size, and what to serve each point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainables.jobs import LEARNGENE_FILE, MODEL_FILE
from trainables.spec import FineSpec, TrialSpec
from trainables.store import Store


def ledger_rows(results: Sequence[tuple[TrialSpec, dict[str, Any]]], store: Store) -> list[dict[str, Any]]:
    """One row per kept file, bytes as measured when it was stored. What a method shares is counted once."""
    rows = []
    for method in sorted({trial.initialization.name for trial, _ in results}):
        members = [(trial, record) for trial, record in results if trial.initialization.name == method]
        learngenes = {t.initialization.learngene for t, _ in members if isinstance(t.initialization, FineSpec)}
        for learngene in learngenes:
            stored = store.read_record(learngene)["files"][LEARNGENE_FILE]["bytes"]
            rows.append(
                {"method": method, "role": "initialize", "item": f"learngene {learngene.id}, any size", "bytes": stored}
            )
        for size in sorted({trial.size for trial, _ in members}, key=lambda s: (s.depth, s.width)):
            # Seeds are repeats of the same point; one of them is served.
            record = next(record for trial, record in members if trial.size == size)
            stored = record["files"][MODEL_FILE]["bytes"]
            rows.append({"method": method, "role": "serve", "item": f"{size.name}, dense weights", "bytes": stored})
    return rows


def ledger_totals(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Bytes by method and role."""
    totals: dict[str, dict[str, int]] = {}
    for row in rows:
        roles = totals.setdefault(row["method"], {"initialize": 0, "serve": 0})
        roles[row["role"]] += row["bytes"]
    return totals
