"""What may be deleted after a sweep: weights that no front needs, banks and ancestors that nothing reads any more, left
checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from sweeps.planning.plan import Plan
from sweeps.results.pareto import COSTS, by_protocol, points_from, report_rows
from sweeps.results.points import Results, point_result
from trainables.jobs.registry import kind_of
from trainables.specs.transfers import TransferSpec
from trainables.storage.files import DELTA_FILE
from trainables.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Deletable:
    """A file or folder below a storage path's root, and why it may go."""

    path: str
    size_bytes: int
    what: str


def deletable(plan: Plan, store: Store) -> list[Deletable]:
    """Files that may go. These stay: points on a front (joint or of their method, by any cost), base models of kept deltas and
    of other sweeps' deltas, artifacts that unfinished jobs read, learngenes, extractors and the user's inputs. Records,
    scores and pictures always stay.
    """
    records = {job.id: record for job in plan.jobs if (record := store.read_record(job))}
    finished = [result for point in plan.points if (result := point_result(point, store))]
    unfinished = [job for job in plan.jobs if job.id not in records]
    on_front = _front_ids(finished, plan)
    needed = {need.id for job in unfinished for need in job.needs}
    dropped = [result.job for result in finished if result.id not in on_front and result.id not in needed]
    dropped_ids = {point.id for point in dropped}
    in_use = {base for transfer, base in _bases_of_deltas(store) if transfer not in dropped_ids}
    files = [(point, "delta on no front") for point in dropped if point.base is not point]
    files += [(point, "weights on no front") for point in dropped if point.base is point and point.id not in in_use]
    passed = [job for job in plan.jobs if kind_of(job).is_passing and job.id in records and job.id not in needed]
    files += [(job, f"{job.kind} that nothing reads any more") for job in passed]
    labels, done = plan.labels, [job for job in plan.jobs if job.id in records]
    found = [
        Deletable(path=path, size_bytes=size, what=f"{labels[job.id]}: {what}")
        for job, what in files
        if (size := store.size_of(path := f"{job.folder}/{kind_of(job).kept.file}")) is not None
    ]
    return found + [
        Deletable(path=path, size_bytes=size, what="checkpoints of finished jobs")
        for path, size in store.checkpoint_folders(done)
    ]


def _front_ids(finished: Results, plan: Plan) -> set[str]:
    ids: set[str] = set()
    for points in by_protocol(points_from(finished, plan.names)).values():
        for row in report_rows(points):
            if any(row[f"{kind}_{cost}"] for kind in ("front", "method_front") for cost in COSTS):
                ids |= set(row["trial_ids"].split())
    return ids


def _bases_of_deltas(store: Store) -> Iterable[tuple[str, str]]:
    """(transfer, base) of every delta that is there, whichever sweep's."""
    for job, _ in store.records("transfer"):
        if isinstance(job, TransferSpec) and store.size_of(f"{job.folder}/{DELTA_FILE}") is not None:
            yield job.id, job.base.id


def clean(plan: Plan, store: Store, console: Console, *, confirmed: bool) -> None:
    """List what may be deleted; delete it if that was confirmed, on the command line or when asked."""
    found = deletable(plan, store)
    if not found:
        console.print("Nothing to delete: what is left is on a front or in use.")
        return
    table = Table(title="May be deleted", title_justify="left", box=SIMPLE)
    for column in ("what", "bytes", "path"):
        table.add_column(column, justify="right" if column == "bytes" else "left", overflow="fold")
    for item in found:
        table.add_row(item.what, f"{item.size_bytes:,}", item.path)
    console.print(table)
    total = sum(item.size_bytes for item in found)
    console.print(f"{total:,} bytes in {store.location}", soft_wrap=True)
    if not confirmed and not console.is_terminal:
        console.print("Nothing was deleted; add --yes to delete it.")
        return
    if confirmed or click.confirm("Delete it?"):
        for item in found:
            store.delete(item.path)
        console.print(f"deleted {total:,} bytes; scores, records and pictures are still there")
