"""What jobs will cost before anything is computed, summed up: multiply-accumulates and seconds on a core."""

from __future__ import annotations

from collections.abc import Iterable

from trainables.jobs.registry import kind_of
from trainables.specs.base import JobSpec
from trainables.specs.tasks import Task


def total_macs(jobs: Iterable[JobSpec]) -> float:
    """Multiply-accumulates of jobs."""
    return sum(kind_of(job).work(job).macs for job in jobs)


def scoring_macs(jobs: Iterable[JobSpec]) -> float:
    """Multiply-accumulates of drawing the images that are scored."""
    return total_macs(job for job in jobs if kind_of(job).is_score)


def core_s(jobs: Iterable[JobSpec]) -> float:
    """Seconds of jobs on one CPU core; start-up not included."""
    return sum(kind_of(job).work(job).core_s for job in jobs)


def result_bytes(job: JobSpec) -> int:
    """Bytes that a job stores: all weights of a model, or what a transfer trains; 0 for small files."""
    return kind_of(job).result_bytes(job)


def task_core_s(task: Task) -> float:
    """The same for a task: its job and its scores."""
    return core_s(task.jobs)
