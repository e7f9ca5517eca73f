"""What it takes to record a large sweep: simulated trials through the real Tune, store, MLflow and report, in one sweep.

A trial replays what one real trial has reported and stores its files with another FID: no time goes into training.
Run: python benchmarks/record.py [--trials 1000]
"""

from __future__ import annotations

import json
import platform
import random
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import psutil
import torch
from ray import tune

import sweeps.execution.tune_run
from sweeps.command_line.options import grid_from
from sweeps.planning.plan import plan_grid
from sweeps.size_grid import main as size_grid
from trainables.jobs.run import run_task
from trainables.specs.identity import to_json
from trainables.storage.record import Record
from trainables.storage.store import Store
from trainables.training.context import LocalContext

OPTIONS = ["--depths", "1", "--widths", "16", "--head-dim", "8", "--methods", "scratch", "--transfer", "none"]
OPTIONS += ["--steps", "300", "--num-samples", "24", "--sampling-steps", "2"]
MIB = 2**20


def _real_trial(folder: str) -> tuple[list[tuple[Record, Path]], list[dict[str, Any]]]:
    """The records with their files, and the reports, of one real trial."""
    torch.set_num_threads(1)
    plan = plan_grid(grid_from(size_grid.make_context("record", list(OPTIONS)).params))
    (task,), context = plan.stages["base"], LocalContext(f"{folder}/context")
    run_task(plan.stages["source"][0], folder, LocalContext(f"{folder}/extractor-context"), checkpoint_every_steps=100)
    run_task(task, folder, context, checkpoint_every_steps=100)
    made = [(Store(folder).record(job), Path(folder) / job.folder) for job in task.jobs]
    return made, [r for r in context.reports if "history" in r]


def _simulated(folder: str, real: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # its memory is not the sweep's
        made, reports = pool.submit(_real_trial, folder).result()

    def trial(config: dict[str, Any]) -> None:
        setup = config["setup"]
        if setup.task.job.kind != "base":
            real(config)
            return
        for report in reports:
            tune.report(report)
        store, noise = Store(setup.store_location), random.Random(setup.task.job.seed).random()
        for job, (record, files) in zip(setup.task.jobs, made, strict=True):
            with tempfile.TemporaryDirectory() as folder:
                for name in record.files:
                    shutil.copyfile(files / name, Path(folder) / name)
                metrics = {name: v + (noise if name == "fid" else 0.0) for name, v in record.metrics.items()}
                own = {"id": job.id, "label": job.label, "spec": to_json(job), "made_from": store.hashes_of(job.needs)}
                store.publish(job, Path(folder), replace(record, **own, metrics=metrics))
        tune.report({"published": True})

    return trial


@contextmanager
def _memory_of_this_process(samples: list[tuple[float, int]]) -> Iterator[None]:
    """(seconds, resident bytes), once a second."""
    done, started = threading.Event(), time.monotonic()

    def watch() -> None:
        while not done.wait(1.0):
            samples.append((time.monotonic() - started, psutil.Process().memory_info().rss))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _mib_at(moment_s: float, samples: list[tuple[float, int]]) -> int:
    return min(samples, key=lambda sample: abs(sample[0] - moment_s))[1] // MIB


@click.command()
@click.option("--trials", type=click.IntRange(min=2), default=1000, show_default=True, help="Points of the sweep.")
def main(trials: int) -> None:
    with tempfile.TemporaryDirectory() as template, tempfile.TemporaryDirectory() as folder:
        sweeps.execution.tune_run._trial = _simulated(template, sweeps.execution.tune_run._trial)
        seeds = ["--seeds", ",".join(map(str, range(trials)))]
        samples: list[tuple[float, int]] = []
        started_s, started = time.time(), time.monotonic()
        with _memory_of_this_process(samples), suppress(SystemExit):
            size_grid.main([*OPTIONS, *seeds, "--runner", "tune", "--storage-path", folder])
        whole_s = time.monotonic() - started
        ends = sorted(file.stat().st_mtime - started_s for file in Path(folder).glob("score/*/record.json"))
        with closing(sqlite3.connect(f"{folder}/mlflow.db")) as database:
            (finished,) = database.execute("SELECT count(*) FROM runs WHERE status = 'FINISHED'").fetchone()
            (metrics,) = database.execute("SELECT count(*) FROM metrics").fetchone()
    tenth = max(1, len(ends) // 10)
    result = {
        "trials": len(ends),
        "mlflow_runs_finished": finished,
        "mlflow_metric_values": metrics,
        "whole_s": whole_s,
        "after_the_last_trial_s": whole_s - ends[-1],
        "s_per_trial": (ends[-1] - ends[0]) / (len(ends) - 1),
        "s_per_trial_first_tenth": (ends[tenth] - ends[0]) / tenth,
        "s_per_trial_last_tenth": (ends[-1] - ends[-1 - tenth]) / tenth,
        "driver_mib_first_trial": _mib_at(ends[0], samples),
        "driver_mib_last_trial": _mib_at(ends[-1], samples),
        "driver_mib_highest": max(size for _, size in samples) // MIB,
    }
    print(json.dumps({"machine": platform.machine(), **result}, indent=1))


if __name__ == "__main__":
    main()
