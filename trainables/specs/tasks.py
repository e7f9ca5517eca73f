"""What is handed to a worker: a job, and the scores of what it made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trainables.specs.base import JobSpec
from trainables.specs.scores import ScoreSpec


@dataclass(frozen=True, kw_only=True)
class Task:
    """A job and the scores that the same worker takes of its model without loading it again. Known by the job's id."""

    job: JobSpec
    scores: tuple[ScoreSpec, ...] = ()

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def label(self) -> str:
        return self.job.label

    @property
    def jobs(self) -> tuple[JobSpec, ...]:
        return (self.job, *self.scores)

    @property
    def needs(self) -> tuple[JobSpec, ...]:
        """What must be in the store before it starts."""
        found = {need.id: need for job in self.jobs for need in job.needs if need.id != self.job.id}
        return tuple(found.values())


def jobs_of(tasks: Iterable[Task]) -> tuple[JobSpec, ...]:
    """All jobs of tasks, each once."""
    return tuple({job.id: job for task in tasks for job in task.jobs}.values())
