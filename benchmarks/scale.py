"""Seconds to plan a large sweep and to list it, as a dry run does. Run: python benchmarks/scale.py [--points 10000]"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from dataclasses import replace

import click
from rich.console import Console

from sweeps.command_line.options import preset_grid
from sweeps.display.plan import show_plan
from sweeps.planning.machine import Machine
from sweeps.planning.plan import find_jobs, plan_grid
from trainables.storage.store import Store


@click.command()
@click.option("--points", type=int, default=10_000, show_default=True, help="Points to plan.")
def main(points: int) -> None:
    grid = replace(preset_grid("demo"), transfer=None, seeds=tuple(range(-(-points // 12))))
    started = time.perf_counter()
    plan = plan_grid(grid)
    plan_s = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder, open("/dev/null", "w") as nowhere:
        store = Store(folder)
        show_plan(Console(file=nowhere, width=130), plan, find_jobs(plan, store), Machine(slots=2))
    result = {"points": len(plan.points), "plan_s": plan_s, "dry_run_s": time.perf_counter() - started}
    print(json.dumps({"machine": platform.machine(), **result}, indent=1))


if __name__ == "__main__":
    main()
