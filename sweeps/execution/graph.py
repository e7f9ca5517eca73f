"""The graph of a sweep's tasks: a task is ready when all that it needs is finished; the longest path goes first."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count

from sweeps.planning.costs import task_core_s
from trainables.specs.tasks import Task


@dataclass(kw_only=True, eq=False)
class _Node:
    """A task that is not finished. `path_s`: its seconds on a core, and those of the longest chain that waits for it.

    `is_touched`: something that it needs was made in this sweep, so it may have to be made again.
    """

    task: Task
    core_s: float
    path_s: float = 0.0
    waits_for: set[str] = field(default_factory=set)
    is_touched: bool = False


class TaskGraph:
    """A source of tasks.

    `missing`: ids of the unfinished tasks, None for all tasks. `is_current`: whether the store holds the results of another
    task, made from the artifacts in the store now. `after_s`: task id -> core seconds outside the graph that wait for the task.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        *,
        missing: frozenset[str] | None = None,
        is_current: Callable[[Task], bool] = lambda task: False,
        after_s: Mapping[str, float] | None = None,
    ) -> None:
        self.nodes = {task.id: _Node(task=task, core_s=task_core_s(task)) for task in tasks}
        self.is_current, self.missing = is_current, frozenset(self.nodes) if missing is None else missing
        self.dependents: dict[str, list[str]] = {id: [] for id in self.nodes}
        made_by = {job.id: node.task.id for node in self.nodes.values() for job in node.task.jobs}
        for id, node in self.nodes.items():
            node.waits_for = {made_by[need.id] for need in node.task.needs if need.id in made_by} - {id}
            for other in node.waits_for:
                self.dependents[other].append(id)
        self._find_paths(after_s or {})
        self.running: set[str] = set()
        self._heap: list[tuple[float, int, str]] = []
        self._order = count()
        self._settle([id for id, node in self.nodes.items() if not node.waits_for])

    def _find_paths(self, after_s: Mapping[str, float]) -> None:
        left = {id: len(dependents) for id, dependents in self.dependents.items()}
        queue = [id for id, number in left.items() if not number]
        for id in queue:  # grows while it is read: each task after all that wait for it
            node = self.nodes[id]
            longest = max((self.nodes[other].path_s for other in self.dependents[id]), default=0.0)
            node.path_s = node.core_s + max(longest, after_s.get(id, 0.0))
            for other in node.waits_for:
                left[other] -= 1
                if not left[other]:
                    queue.append(other)

    def _settle(self, ids: Iterable[str]) -> None:
        """Queue tasks that wait for nothing any more, or pass over those that are finished already."""
        queue = list(ids)
        for id in queue:  # grows while it is read
            node = self.nodes[id]
            if id in self.missing or (node.is_touched and not self.is_current(node.task)):
                heapq.heappush(self._heap, (-node.path_s, next(self._order), id))
            else:
                queue += self._release(id, touched=False)

    def _release(self, id: str, *, touched: bool) -> list[str]:
        """Take a finished task out of the graph. Returns the tasks that wait for nothing any more."""
        del self.nodes[id]
        ready = []
        for other in self.dependents.pop(id):
            if (node := self.nodes.get(other)) is not None:
                node.waits_for.discard(id)
                node.is_touched |= touched
                if not node.waits_for:
                    ready.append(other)
        return ready

    # A source of tasks.

    hands_out_ahead = True

    def next_task(self) -> Task | None:
        if not self._heap:
            return None
        _, _, id = heapq.heappop(self._heap)
        self.running.add(id)
        return self.nodes[id].task

    def is_exhausted(self) -> bool:
        return len(self.nodes) == len(self.running)

    def workers_wanted(self, task: Task, slots: int) -> int:
        """The fewest workers with which the chain that starts with a task takes no longer than all tasks on all slots."""
        node, balanced_s = self.nodes[task.id], sum(node.core_s for node in self.nodes.values()) / slots
        rest_s = balanced_s - (node.path_s - node.core_s)
        return slots if rest_s <= 0 else min(slots, max(1, math.ceil(node.core_s / rest_s)))

    # What became of its tasks.

    def finished(self, task: Task) -> None:
        if task.id in self.running:
            self.running.discard(task.id)
            self._settle(self._release(task.id, touched=True))

    def failed(self, task: Task) -> list[tuple[Task, Task]]:
        """Take a task that failed out of the graph, and all that need it. Returns those, each with the need that it lacks."""
        if task.id not in self.nodes:
            return []
        self.running.discard(task.id)
        lost: dict[str, tuple[Task, Task]] = {}
        queue = [task]
        for cause in queue:  # grows while it is read
            del self.nodes[cause.id]
            for id in self.dependents.pop(cause.id):
                if id in self.nodes and id not in lost:
                    lost[id] = (self.nodes[id].task, cause)
                    queue.append(self.nodes[id].task)
        return list(lost.values())

    def is_open(self, task_id: str) -> bool:
        """Whether a task is still to be finished."""
        return task_id in self.nodes
