"""A sweep's tasks, each claimed before it is handed out: what another process computes is waited for, not computed twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from sweeps.execution.errors import StoppedSweep
from sweeps.execution.tune_run import TaskListener, TaskSource
from trainables.failures import Failure
from trainables.specs.tasks import Task
from trainables.storage.leases import POLL_S, Leases, LostLease, Owner


class ClaimListener(TaskListener, Protocol):
    """Hears also of what other processes do."""

    def waits_for(self, owner: Owner) -> None: ...
    def finished_elsewhere(self, task: Task) -> None: ...


class ClaimedTasks:
    """Wraps the task source and the listener of a sweep: a task is handed out only after this process has claimed the task.

    `is_finished`: whether the store holds the results of a task.
    """

    def __init__(
        self, source: TaskSource, listener: ClaimListener, leases: Leases, is_finished: Callable[[Task], bool]
    ) -> None:
        self.source, self.listener, self.leases, self.is_finished = source, listener, leases, is_finished
        self.elsewhere: list[Task] = []
        self._said: set[str] = set()
        self._looked_s = 0.0

    # A source of tasks.

    @property
    def hands_out_ahead(self) -> bool:
        return self.source.hands_out_ahead

    def next_task(self) -> Task | None:
        try:
            if (task := self._from_elsewhere()) is not None:
                return task
            while (task := self.source.next_task()) is not None:
                if self._is_ours(task):
                    return task
                self.elsewhere.append(task)
        except LostLease as error:
            raise StoppedSweep(str(error)) from error
        return None

    def _from_elsewhere(self) -> Task | None:
        """The first task that another process gave up, or None. Tells the listener of tasks finished by other processes."""
        if not self.elsewhere or time.monotonic() - self._looked_s < POLL_S:
            return None
        self._looked_s = time.monotonic()
        for task in tuple(self.elsewhere):
            if self._is_ours(task):
                self.elsewhere.remove(task)
                if not self.is_finished(task):
                    return task
                self.leases.release(task.job.run_id)
                self.listener.finished_elsewhere(task)
        return None

    def _is_ours(self, task: Task) -> bool:
        holder = self.leases.claim(task.job.run_id)
        if holder is not None and holder.id not in self._said:
            self._said.add(holder.id)
            self.listener.waits_for(holder)
        return holder is None

    def is_exhausted(self) -> bool:
        return not self.elsewhere and self.source.is_exhausted()

    def workers_wanted(self, task: Task, slots: int) -> int:
        return self.source.workers_wanted(task, slots)

    # A listener.

    def started(self, task: Task) -> None:
        self.listener.started(task)

    def reported(self, task: Task, metrics: dict[str, Any]) -> None:
        self.listener.reported(task, metrics)

    def finished(self, task: Task) -> None:
        self.leases.release(task.job.run_id)
        self.listener.finished(task)

    def failed(self, task: Task, failure: Failure) -> None:
        self.leases.release(task.job.run_id)
        self.listener.failed(task, failure)
