"""Run a task: a job of any kind from its latest checkpoint to its record in the store, then the scores of what it made."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from fine_core.data.by_path import is_by_path
from fine_core.data.registry import load_dataset
from fine_core.dit import DiT
from trainables.jobs.context import JobContext, Result
from trainables.jobs.registry import kind_of
from trainables.specs.base import JobSpec
from trainables.specs.identity import to_json
from trainables.specs.scores import ScoreSpec
from trainables.specs.tasks import Task
from trainables.storage.provenance import PeakMemory, provenance
from trainables.storage.record import Record
from trainables.storage.store import Store, StoreError
from trainables.training.context import RunContext
from trainables.training.loop import Milestones
from trainables.training.reproducible import make_reproducible


def run_task(task: Task, store_location: str, run: RunContext, *, checkpoint_every_steps: int) -> None:
    """Compute a job and its scores and publish their records; what the store has already is not computed again."""
    store = Store(store_location)
    make_reproducible(run.device)
    settings: dict[str, Any] = {"store": store, "run": run, "checkpoint_every_steps": checkpoint_every_steps}
    served = run_job(task.job, milestones=_milestones(task, settings), **settings).served
    for score in task.scores:
        run_job(score, served=served if score.partial is None else None, **settings)
    run.report({"published": True}, None)


def _milestones(task: Task, settings: dict[str, Any]) -> Milestones:
    """The scores of a task's model that are taken while it trains. What is missed so, such as by a training that was finished
    before it was asked for, is scored afterwards, of the same steps taken again."""

    def score_all(scores: list[ScoreSpec], model: DiT) -> None:
        for score in scores:
            run_job(score, served=model, **settings)

    by_step: dict[int, list[ScoreSpec]] = {}
    for score in task.scores:
        if score.partial is not None:
            by_step.setdefault(score.partial.step, []).append(score)
    return {step: partial(score_all, scores) for step, scores in by_step.items()}


def run_job(
    job: JobSpec,
    store: Store,
    run: RunContext,
    *,
    checkpoint_every_steps: int,
    served: DiT | None = None,
    milestones: Milestones | None = None,
) -> Result:
    """Compute one job and publish its record. `served`: the model to score, where it is in memory already."""
    if run.agreed(run.rank == 0 and store.is_finished(job)):
        return Result()
    started, memory = time.perf_counter(), PeakMemory(run.device)
    made_from = _agreed_hashes(job, store, run)  # before it is read: a later change is a mismatch
    with tempfile.TemporaryDirectory() as folder:
        context = JobContext(
            store=store,
            run=run,
            folder=Path(folder),
            checkpoint_every_steps=checkpoint_every_steps,
            load=lambda made: load_served(made, store),
            served=served,
            milestones=milestones or {},
        )
        result = kind_of(job).run(job, context)
        if run.rank == 0:
            costs = {"peak_memory_bytes": memory.bytes(), "job_s": time.perf_counter() - started}
            costs["num_workers"] = run.num_workers
            record = Record(
                id=job.id,
                kind=job.kind,
                label=job.label,
                spec=to_json(job),
                metrics=result.metrics | costs,
                history=result.history,
                protocol=result.protocol,
                made_from=made_from,
                unreadable_images=_unreadable_images(job),
                provenance=provenance(),
            )
            store.publish(job, Path(folder), record)
    return result


def _agreed_hashes(job: JobSpec, store: Store, run: RunContext) -> dict[str, dict[str, str]]:
    """What the job is made from. Raises StoreError on all ranks if they see different artifacts: one may have been made anew
    while they started, or a file system may still show another host what was there before."""
    try:
        seen, problem = store.hashes_of(job.needs), None
    except StoreError as error:
        seen, problem = {}, str(error)
    first = run.agreed(seen)
    if seen != first and problem is None:
        changed = ", ".join(folder for folder in first if seen.get(folder) != first[folder])
        problem = f"worker {run.rank} sees other files of {changed} than the first one; run the same command again"
    run.raise_together(problem, StoreError)
    return first


def load_served(job: JobSpec, store: Store) -> DiT:
    """The model that a finished job has made: dense, or as prepared for a transfer that cannot be merged.

    Raises StoreError or CheckpointError.
    """
    return kind_of(job).serve(job, store)


def _unreadable_images(job: JobSpec) -> list[str]:
    """Files of the job's dataset that this process could not decode and replaced by the next image of their class."""
    dataset = getattr(job, "dataset", None)
    return load_dataset(dataset, "train").corrupt if dataset is not None and is_by_path(dataset) else []
