"""Large sweeps: seconds to plan many points, and many finished trials through the real Tune and MLflow path.

The trials are simulated: their records appear without training. Run: python benchmarks/scale.py [--points 10000]
[--trials 1000]
"""

from __future__ import annotations

import json
import platform
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from mlflow_setup.tracking import open_tracking
from sweeps.monitor import show_plan
from sweeps.options import preset_grid
from sweeps.planning import Plan, plan_grid
from sweeps.running import RunnerSpec
from sweeps.sweep import Sweep
from trainables.files import LEARNGENE_FILE, MODEL_FILE, SAMPLES_FILE
from trainables.provenance import common_record
from trainables.spec import JobSpec, TrialSpec
from trainables.store import Store

METRICS = ("fid", "kid", "precision", "recall", "source_fid", "eval_s", "train_s", "train_steps", "params_total")
METRICS += ("params_trainable", "macs", "serve_bytes", "initialize_bytes", "peak_memory_bytes", "job_s")


def plan_many(points: int) -> dict[str, float]:
    grid = replace(preset_grid("demo"), transfer=None, seeds=tuple(range(-(-points // 12))))
    started = time.perf_counter()
    plan = plan_grid(grid)
    planned_s = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder, open("/dev/null", "w") as nowhere:
        store = Store(folder)
        finished = {job.id for job in plan.jobs if store.read_record(job)}
        show_plan(Console(file=nowhere, width=130), plan, finished, slots=2)
    return {"points": len(plan.points), "plan_s": planned_s, "dry_run_s": time.perf_counter() - started}


def simulate(job: JobSpec, store_location: str, run, *, checkpoint_every_steps: int) -> None:
    """What `run_job` leaves, without the work."""
    metrics = {name: 1.0 + (hash(job.id) % 1000) / 1000 for name in METRICS}
    history = [{"step": step, "train/loss": 1 / step} for step in range(10, 110, 10)]
    run.report({"step": 100, "total_steps": 100, "phase": "simulated", "history": history}, None)
    with tempfile.TemporaryDirectory() as folder:
        for name in (MODEL_FILE, SAMPLES_FILE) if isinstance(job, TrialSpec) else (LEARNGENE_FILE,):
            (Path(folder) / name).write_bytes(b"simulated")
        more = {"metrics": metrics, "history": history, "protocol": "simulated", "made_by": None, "unreadable_images": []}
        Store(store_location).publish(job, Path(folder), {**common_record(job), **more})
    run.report({"published": True}, None)


def record_many(trials: int) -> dict[str, float]:
    import sweeps.running

    sweeps.running.run_job = simulate  # cloudpickled into Tune's processes with the trainable
    grid = replace(preset_grid("demo"), transfer=None, seeds=tuple(range(-(-trials // 12))))
    plan: Plan = plan_grid(grid)
    with tempfile.TemporaryDirectory() as folder, open("/dev/null", "w") as nowhere:
        tracking = open_tracking(f"sqlite:///{folder}/mlflow.db", "scale", Path(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sweep = Sweep(
            "scale",
            plan,
            {},
            store=Store(folder),
            tracking=tracking,
            runner=RunnerSpec(runner="tune"),
            data_folder=Path(folder),
            console=Console(file=nowhere, width=130),
        )
        started = time.perf_counter()
        code = sweep.run()
        wall_s = time.perf_counter() - started
        children = tracking.client.search_runs([tracking.experiment_id], "tags.trial_id != ''", max_results=10_000)
    finished = sum(child.info.status == "FINISHED" for child in children)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "trials": len(plan.base),
        "exit_code": code,
        "finished_runs": finished,
        "wall_s": wall_s,
        "s_per_trial": wall_s / len(plan.base),
        "driver_peak_mb": peak / 1024,
        "driver_growth_mb": (peak - before) / 1024,
    }


@click.command()
@click.option("--points", type=int, default=10_000, show_default=True, help="Points to plan.")
@click.option("--trials", type=int, default=1_000, show_default=True, help="Simulated trials to record.")
def main(points: int, trials: int) -> None:
    result = {"machine": platform.machine(), "planning": plan_many(points)}
    if trials:
        result["recording"] = record_many(trials)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
