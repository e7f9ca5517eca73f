"""The graph of tasks: what is ready, in which order, and what becomes of what waits for a failed task."""

import heapq
import random
from dataclasses import replace

import pytest

from sweeps.command_line.options import preset_grid
from sweeps.execution import graph as graph_module
from sweeps.execution.graph import TaskGraph
from sweeps.planning.plan import plan_grid
from trainables.specs.base import JobSpec
from trainables.specs.identity import spec
from trainables.specs.tasks import Task


@spec("test-step")
class Step(JobSpec):
    """A job that takes `seconds` and needs others."""

    kind = "step"
    name: str
    seconds: float = 1.0
    made_from: tuple[JobSpec, ...] = ()

    @property
    def needs(self):
        return self.made_from


@pytest.fixture(autouse=True)
def seconds_of_steps(monkeypatch):
    real = graph_module.task_core_s
    monkeypatch.setattr(graph_module, "task_core_s", lambda t: t.job.seconds if isinstance(t.job, Step) else real(t))


def step(name: str, seconds: float = 1.0, *needs: Task) -> Task:
    return Task(job=Step(name=name, seconds=seconds, made_from=tuple(need.job for need in needs)))


def names(tasks) -> list[str]:
    return [task.job.name for task in tasks]


def drain(graph: TaskGraph) -> list[str]:
    """All tasks one after the other, as a single worker does them."""
    done = []
    while (task := graph.next_task()) is not None:
        done.append(task.job.name)
        graph.finished(task)
    assert graph.is_exhausted()
    return done


def test_the_longest_path_goes_first_and_nothing_before_what_it_needs():
    root = step("root", 5)
    middle, leaf = step("middle", 1, root), step("leaf", 1, root)
    end, alone = step("end", 10, middle), step("alone", 12)
    assert drain(TaskGraph([alone, end, leaf, middle, root])) == ["root", "alone", "middle", "end", "leaf"]


def test_what_waits_outside_the_graph_counts_to_the_path():
    short, long = step("short", 1), step("long", 2)
    assert drain(TaskGraph([short, long])) == ["long", "short"]
    assert drain(TaskGraph([short, long], after_s={short.id: 5})) == ["short", "long"]


def test_a_finished_task_is_passed_over_unless_what_it_needs_was_made_again():
    root = step("root")
    middle = step("middle", 1, root)
    end = step("end", 1, middle)
    tasks = [root, middle, end]
    never, always = (lambda task: False), (lambda task: True)
    assert drain(TaskGraph(tasks, missing=frozenset({end.id}), is_current=never)) == ["end"], "nobody asks: nothing changed"
    assert drain(TaskGraph(tasks, missing=frozenset({root.id, end.id}), is_current=always)) == ["root", "end"]
    assert drain(TaskGraph(tasks, missing=frozenset({root.id}), is_current=never)) == ["root", "middle", "end"]
    assert drain(TaskGraph(tasks, missing=frozenset(), is_current=never)) == []


def test_a_failed_task_takes_what_needs_it_with_it_and_nothing_else():
    root, other = step("root"), step("other", 9)
    middle, safe = step("middle", 1, root), step("safe", 1, other)
    end = step("end", 1, middle, other)
    graph = TaskGraph([root, other, middle, safe, end])
    first, second = graph.next_task(), graph.next_task()
    assert names([first, second]) == ["other", "root"]
    assert [(lost.job.name, need.job.name) for lost, need in graph.failed(second)] == [("middle", "root"), ("end", "middle")]
    assert graph.failed(second) == [], "heard again, it changes nothing"
    assert not graph.is_exhausted(), "safe waits for other"
    graph.finished(first)
    assert drain(graph) == ["safe"]


def test_a_task_that_all_wait_for_takes_as_many_workers_as_bring_the_end_forward():
    root = step("root", 100)
    end, rest = step("end", 10, root), [step(f"rest {i}", 10) for i in range(29)]
    assert TaskGraph([root, end, *rest]).workers_wanted(root, 2) == 1, "there is enough else to do on the other slot"
    assert TaskGraph([root, end, *rest]).workers_wanted(root, 8) == 3, "100 s / 3 + 10 s is less than 400 s / 8"
    assert TaskGraph([root, end]).workers_wanted(root, 8) == 8


def test_slots_stay_busy_within_a_few_percent_of_the_bound():
    """Random graphs on 64 slots, jobs of mixed length: the end against the larger of the longest path and the work per slot."""
    rng, slots = random.Random(0), 64
    roots = [step(f"root {i}", rng.uniform(20, 60)) for i in range(20)]
    bases = [step(f"base {i}", rng.uniform(5, 60), rng.choice(roots)) for i in range(300)]
    ends = [step(f"end {i}", rng.uniform(1, 30), rng.choice(bases)) for i in range(2000)]
    tasks = [*ends, *bases, *roots]
    graph = TaskGraph(tasks)
    longest_s = max(node.path_s for node in graph.nodes.values())
    bound_s = max(longest_s, sum(task.job.seconds for task in tasks) / slots)
    now, running = 0.0, []
    while not graph.is_exhausted() or running:
        while len(running) < slots and (task := graph.next_task()) is not None:
            heapq.heappush(running, (now + task.job.seconds, task.id, task))
        now, _, task = heapq.heappop(running)
        graph.finished(task)
    assert bound_s / now >= 0.95


def test_a_grid_of_ten_thousand_tasks_is_a_graph_within_a_second_or_so():
    grid = replace(preset_grid("demo"), transfer=None, depths=(2, 4), widths=(32,), seeds=tuple(range(2500)))
    graph = TaskGraph(plan_grid(grid).tasks)
    assert len(graph.nodes) == 10_002
    first = [graph.next_task() for _ in range(2)]
    assert {task.job.kind for task in first} == {"extractor", "learngene"}
    assert graph.next_task() is None, "all base models are scored by the extractor"
    graph.finished(first[[task.job.kind for task in first].index("extractor")])
    assert graph.next_task().job.initialization.name == "scratch"
