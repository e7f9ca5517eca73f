"""The real commands with options that make them take seconds, and what they leave behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow

from sweeps.command_line.options import grid_from
from sweeps.planning.plan import plan_grid
from sweeps.size_grid import main as size_grid
from trainables.jobs.run import run_task
from trainables.training.context import LocalContext

ROOT = Path(__file__).parents[1]
PATIENCE_S = 900  # with a command that has to end at all: several clusters may share two cores
TINY = ["--depths", "2", "--widths", "16", "--head-dim", "8", "--batch-size", "16", "--num-samples", "24"]
TINY += ["--sampling-steps", "2", "--steps", "12", "--sigma-steps", "6", "--source-steps", "12"]
TINY += ["--checkpoint-every-steps", "4"]
TRANSFER = ["--transfer-steps", "12", "--bank-images", "40", "--bank-sampling-steps", "2", "--target", "digits-inverted"]


def command(store: Path, *options: str, script: str = "size_grid") -> list[str]:
    none = [] if script == "schedule_search" else ["--transfer", "none"]  # unless the options name one
    return [sys.executable, str(ROOT / f"sweeps/{script}.py"), *TINY, *none, "--storage-path", str(store), *options]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}


def sweep(store: Path, *options: str, expect: int = 0, script: str = "size_grid") -> str:
    # From elsewhere: the command must not depend on the current folder.
    result = subprocess.run(
        command(store, *options, script=script),
        cwd=store.parent,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert result.returncode == expect, result.stdout + result.stderr
    return result.stdout


def runs(store: Path, experiment: str = "size-grid"):
    """(parents, children) of the store's experiment."""
    client = mlflow.MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name(experiment)
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    return client, [run for run in found if run not in children], children


def weights(store: Path) -> dict[str, dict]:
    names = ("base/*/model", "learngene/*/learngene", "transfer/*/delta")
    files = [file for name in names for file in store.glob(f"{name}.safetensors")]
    return {str(file.relative_to(store)): file.read_bytes() for file in files}


def compute_without_ray(store: Path, *options: str) -> None:
    """What a sweep with one worker per trial computes, job by job in this process: nothing disturbs it."""
    arguments = [*TINY, "--transfer", "none", *options]
    plan = plan_grid(grid_from(size_grid.make_context("size_grid", arguments).params))
    for task in plan.tasks:
        run_task(task, str(store), LocalContext(store.parent / f"context-{task.id}"), checkpoint_every_steps=100)


def matches(folder: Path, pattern: str) -> list[Path]:
    """Paths below a folder that another process writes to; none where one is deleted under the search."""
    try:
        return list(folder.glob(pattern))
    except FileNotFoundError:
        return []


def wait_for(
    condition: Callable[[], object], what: str, *, process: subprocess.Popen | None = None, timeout_s: float = PATIENCE_S
) -> None:
    """Until the condition holds; fails if that takes too long or the process ends before."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        ended = process is not None and process.poll() is not None and not condition()
        if process is not None and (ended or time.monotonic() > deadline):
            process.kill()
            raise AssertionError(f"{what}: never seen\n{process.communicate()[0]}")
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def start(store: Path, *options: str, script: str = "size_grid") -> subprocess.Popen:
    """The command as a process of its own, which Ctrl-C can stop also where this one ignores it."""
    return subprocess.Popen(
        command(store, *options, script=script),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
