"""The demo's base grid by a sweep, and by a bare Python loop over the same tasks: what Ray and MLflow cost.

Both run in one go on this machine, the loop in as many plain processes as the sweep has slots. Efficiency is the seconds of
all jobs over wall seconds times slots; the start of Ray is not in it, that of its processes is. Run:
python benchmarks/sweep_overhead.py [--steps 300]
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import click
import torch

from sweeps.command_line.options import preset_grid
from sweeps.execution.cluster import num_cpus
from sweeps.planning.plan import Plan, plan_grid
from trainables.jobs.run import run_task
from trainables.specs.tasks import Task
from trainables.storage.store import Store
from trainables.training.context import LocalContext

SOURCE_STEPS = 200
SIZE_GRID = Path(__file__).parents[1] / "sweeps" / "size_grid.py"


def _options(steps: int) -> dict[str, int]:
    return {"fine.sigma_steps": steps // 3}


def _compute(task: Task, location: str) -> None:
    torch.set_num_threads(1)
    run_task(task, location, LocalContext(f"{location}/contexts/{task.id}"), checkpoint_every_steps=100)


def _work_s(plan: Plan, store: Store) -> float:
    metrics = [store.record(job).metrics for job in plan.jobs]
    return sum(m["job_s"] * m["num_workers"] for m in metrics)


def _loop(plan: Plan, folder: str, slots: int) -> dict[str, float]:
    with ProcessPoolExecutor(slots) as pool:
        started = time.perf_counter()
        for tasks in plan.stages.values():
            for future in [pool.submit(_compute, task, folder) for task in tasks]:
                future.result()
        wall_s = time.perf_counter() - started
    work_s = _work_s(plan, Store(folder))
    return {"wall_s": wall_s, "work_s": work_s, "efficiency": work_s / (wall_s * slots)}


def _sweep(plan: Plan, folder: str, steps: int) -> dict[str, float]:
    options = [f"--{name.replace('.', '-').replace('_', '-')}={value}" for name, value in _options(steps).items()]
    options.append(f"--source-steps={SOURCE_STEPS}")
    options += [f"--steps={steps}", "--transfer=none", f"--storage-path={folder}"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    started = time.perf_counter()
    command = [sys.executable, str(SIZE_GRID), *options]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    whole_s = time.perf_counter() - started
    share = re.search(r"(\d+)% of the slots' time was work", output)
    assert share is not None, output
    return {"work_s": _work_s(plan, Store(folder)), "efficiency": int(share[1]) / 100, "whole_command_s": whole_s}


@click.command()
@click.option("--steps", type=int, default=300, show_default=True, help="Training steps of a point.")
def main(steps: int) -> None:
    grid = preset_grid("demo")
    grid = replace(grid, transfer=None, steps=steps, source_steps=SOURCE_STEPS, options=grid.options.changed(_options(steps)))
    plan, slots = plan_grid(grid), num_cpus()
    with tempfile.TemporaryDirectory() as loop_folder, tempfile.TemporaryDirectory() as sweep_folder:
        results = {"loop": _loop(plan, loop_folder, slots), "sweep": _sweep(plan, sweep_folder, steps)}
    ratio = results["sweep"]["efficiency"] / results["loop"]["efficiency"]
    machine = {"machine": platform.machine(), "slots": slots, "points": len(plan.points), "jobs": len(plan.jobs)}
    print(json.dumps({**machine, **results, "sweep_over_loop": ratio}, indent=1))


if __name__ == "__main__":
    main()
