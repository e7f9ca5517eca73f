"""What a sweep will write, checked against the disk before it starts."""

from __future__ import annotations

import shutil
from collections.abc import Set
from dataclasses import dataclass

from fine_core.dit import count_parameters
from sweeps.planning.costs import result_bytes
from sweeps.planning.plan import Plan
from trainables.jobs.registry import kind_of
from trainables.storage.store import Store

FLOAT_BYTES = 4
CHECKPOINT_COPIES = 2  # the last one stays until the next is whole
CHECKPOINT_TENSORS = 4  # of each trained parameter: value, average, two moments


class DiskFull(ValueError):
    """A sweep that would not fit."""


@dataclass(frozen=True, kw_only=True)
class DiskNeed:
    """Bytes that a sweep will leave in its storage path, and that its checkpoints take besides while it runs."""

    result_bytes: int
    checkpoint_bytes: int


def disk_need(plan: Plan, finished: Set[str], slots: int) -> DiskNeed:
    """An estimate from the plan: points exactly, learngenes and banks roughly, pictures not at all."""
    missing = [job for job in plan.jobs if job.id not in finished]
    models = [model for job in missing if (model := kind_of(job).work(job).model) is not None]
    largest = max(map(count_parameters, models), default=0)
    checkpoint = largest * FLOAT_BYTES * CHECKPOINT_TENSORS * CHECKPOINT_COPIES
    return DiskNeed(result_bytes=sum(map(result_bytes, missing)), checkpoint_bytes=checkpoint * slots)


def check_disk(store: Store, need: DiskNeed, budget_bytes: int | None) -> None:
    """Raises DiskFull if a local disk has too little room, or the storage path would grow beyond its budget."""
    needed = need.result_bytes + need.checkpoint_bytes
    if store.is_local:
        free = shutil.disk_usage(store.root).free
        if needed > free:
            raise DiskFull(
                f"the sweep needs about {needed:,} bytes in {store.root} ({need.result_bytes:,} of results and "
                f"{need.checkpoint_bytes:,} of checkpoints), {free:,} are free; make room, or use another --storage-path"
            )
    if budget_bytes is not None and (used := store.used_bytes()) + needed > budget_bytes:
        raise DiskFull(
            f"the sweep needs about {needed:,} bytes and {store.location} holds {used:,}, more than the --disk-budget of "
            f"{budget_bytes:,}; raise it, or make room with --clean"
        )
