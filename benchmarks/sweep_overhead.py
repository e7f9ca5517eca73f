"""The demo's base grid by a sweep, and by a bare Python loop over the same points: what Ray and MLflow cost.

Both run in one go on this machine, the loop in as many plain processes as the sweep has slots. Efficiency is the seconds of
training and evaluation over wall seconds times slots. Run: python benchmarks/sweep_overhead.py [--steps 300]
"""

from __future__ import annotations

import json
import os
import platform
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

SIZE_GRID = Path(__file__).parents[1] / "sweeps" / "size_grid.py"


def _options(steps: int) -> dict[str, int]:
    return {"steps": steps, "sigma_steps": steps // 3, "source_steps": 200}


def _compute(task: Task, location: str) -> None:
    torch.set_num_threads(1)
    run_task(task, location, LocalContext(f"{location}/contexts/{task.id}"), checkpoint_every_steps=100)


def _work_s(plan: Plan, store: Store) -> float:
    metrics = [store.record(job).metrics for task in plan.stages["base"] for job in task.jobs]
    return sum(m.get("train_s", 0.0) + m.get("eval_s", 0.0) for m in metrics)


def _loop(plan: Plan, folder: str, slots: int) -> dict[str, float]:
    with ProcessPoolExecutor(slots) as pool:
        for task in plan.stages["source"]:
            pool.submit(_compute, task, folder).result()
        started = time.perf_counter()
        for future in [pool.submit(_compute, task, folder) for task in plan.stages["base"]]:
            future.result()
        return _result(plan, Store(folder), time.perf_counter() - started, slots)


def _sweep(plan: Plan, folder: str, steps: int, slots: int) -> dict[str, float]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in _options(steps).items()]
    command = [sys.executable, str(SIZE_GRID), "--transfer", "none", "--storage-path", folder, *options]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    started = time.perf_counter()
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    whole_s = time.perf_counter() - started
    (line,) = [line for line in output.splitlines() if line.startswith("stage base:") and "outside" in line]
    outside_s = float(line.split("; ")[1].split(" s per trial")[0])
    work_s = _work_s(plan, Store(folder))
    wall_s = (work_s + outside_s * len(plan.stages["base"])) / slots
    return {**_result(plan, Store(folder), wall_s, slots), "whole_command_s": whole_s}


def _result(plan: Plan, store: Store, wall_s: float, slots: int) -> dict[str, float]:
    work_s = _work_s(plan, store)
    outside_s = (wall_s * slots - work_s) / len(plan.stages["base"])
    return {"wall_s": wall_s, "work_s": work_s, "efficiency": work_s / (wall_s * slots), "outside_s_per_trial": outside_s}


@click.command()
@click.option("--steps", type=int, default=300, show_default=True, help="Training steps of a point.")
def main(steps: int) -> None:
    plan, slots = plan_grid(replace(preset_grid("demo"), transfer=None, **_options(steps))), num_cpus()
    with tempfile.TemporaryDirectory() as loop_folder, tempfile.TemporaryDirectory() as sweep_folder:
        results = {"loop": _loop(plan, loop_folder, slots), "sweep": _sweep(plan, sweep_folder, steps, slots)}
    ratio = results["sweep"]["efficiency"] / results["loop"]["efficiency"]
    machine = {"machine": platform.machine(), "slots": slots, "points": len(plan.stages["base"])}
    print(json.dumps({**machine, **results, "sweep_over_loop": ratio}, indent=1))


if __name__ == "__main__":
    main()
