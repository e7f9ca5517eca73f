"""Seconds a trial spends outside training and evaluation: inside Tune's process against a Ray Train worker group.

Both runners compute the same points in one run on this machine; the ratio is what carries over to other machines.
Run: python benchmarks/runner_overhead.py [--points 6]
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from dataclasses import replace
from typing import Any

import click

from sweeps.command_line.options import preset_grid
from sweeps.execution.cluster import connect_cluster
from sweeps.execution.graph import TaskGraph
from sweeps.execution.runner import RunnerSpec, cluster_slots
from sweeps.execution.tune_run import run_tasks
from sweeps.planning.plan import plan_grid
from trainables.failures import Failure
from trainables.specs.tasks import Task
from trainables.storage.store import Store


class Failures:
    """A listener that only remembers failures."""

    def __init__(self, graph: TaskGraph) -> None:
        self.graph, self.reasons = graph, list[str]()

    def started(self, task: Task) -> None: ...

    def reported(self, task: Task, metrics: dict[str, Any]) -> None: ...

    def finished(self, task: Task) -> None:
        self.graph.finished(task)

    def failed(self, task: Task, failure: Failure) -> None:
        self.reasons.append(str(failure))


def outside_s_per_trial(runner: RunnerSpec, points: int) -> dict[str, float]:
    """Run `points` small trials from scratch in a store of their own."""
    grid = replace(
        preset_grid("demo"),
        transfer=None,
        depths=(2,),
        widths=(32,),
        methods=("scratch",),
        seeds=tuple(range(points)),
        steps=100,
    )
    plan = plan_grid(grid)
    with tempfile.TemporaryDirectory() as folder:
        store, source, base = Store(folder), TaskGraph(plan.stages["source"]), TaskGraph(plan.stages["base"])
        run_tasks("source", source, store, RunnerSpec(), Failures(source))
        listener = Failures(base)
        slots = min(cluster_slots(runner), points)
        started = time.perf_counter()
        run_tasks("base", base, store, runner, listener)
        wall_s = time.perf_counter() - started
        if listener.reasons:
            raise RuntimeError(listener.reasons[0])
        metrics = [store.record(job).metrics for task in plan.stages["base"] for job in task.jobs]
    work_s = sum(m.get("train_s", 0.0) + m.get("eval_s", 0.0) for m in metrics)
    return {"wall_s": wall_s, "slots": slots, "work_s": work_s, "outside_s_per_trial": (wall_s * slots - work_s) / points}


@click.command()
@click.option("--points", type=int, default=6, show_default=True)
def main(points: int) -> None:
    connect_cluster()
    results = {name: outside_s_per_trial(RunnerSpec(runner=name), points) for name in ("tune", "train")}
    ratio = results["train"]["outside_s_per_trial"] / results["tune"]["outside_s_per_trial"]
    print(json.dumps({"machine": platform.machine(), "points": points, **results, "train_over_tune": ratio}, indent=1))


if __name__ == "__main__":
    main()
