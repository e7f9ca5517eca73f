"""What a person sees of a running sweep: the plan, live progress, and where to look at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from sweeps.display.numbers import duration
from sweeps.planning.costs import core_s
from sweeps.planning.plan import Found, Plan
from trainables.failures import Failure
from trainables.specs.tasks import Task


class ProgressView:
    """Live bars on a terminal, one line per event elsewhere. Fed by the sweep's own process only."""

    def __init__(
        self, console: Console, plan: Plan, found: Found, label: Callable[[Task], str] = lambda task: task.label
    ) -> None:
        self.console, self.label = console, label
        missing = {task.id: found.missing(task) for task in plan.tasks}
        self.costs = {id: core_s(jobs) for id, jobs in missing.items() if jobs}
        self.done_share: dict[str, float] = dict.fromkeys(self.costs, 0.0)
        self.running: dict[str, TaskID] = {}
        self.failed_count = 0
        self.best: dict[str, tuple[float, str]] = {}  # by dataset: scores on different ones do not compete
        self.started_s = time.monotonic()
        self.total: TaskID | None = None
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[info]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> ProgressView:
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def begin(self, num_tasks: int, further: Mapping[str, float]) -> None:
        """`further`: seconds on a core of each trial that is no task yet, by a name of its own."""
        self.costs |= further
        self.total = self.progress.add_task("jobs", total=num_tasks + len(further), info="starting workers")

    def started(self, task: Task) -> None:
        if task.id not in self.running:
            self.running[task.id] = self.progress.add_task(f"  {self.label(task)}", total=task.job.total_steps or None, info="")
        self._refresh()

    def reported(self, task: Task, metrics: dict[str, Any]) -> None:
        if task.id in self.running:
            info = metrics["phase"]
            if metrics["history"]:
                last = metrics["history"][-1]
                info += f" loss {last['train/loss']:.4f}"
                training = getattr(task.job, "training", None)
                if training is not None and "train/steps_per_s" in last:
                    info += f" {last['train/steps_per_s'] * training.batch_size:,.0f} images/s"
            self.progress.update(self.running[task.id], completed=metrics["step"], info=info)
        # Scoring and saving come after the last step.
        self.done_share[task.id] = 0.95 * metrics["step"] / max(1, metrics["total_steps"])
        self._refresh()

    def finished(
        self, task: Task, fid: float | None, job_s: float, *, note: str = "", proxy: bool = False, advance: int = 1
    ) -> None:
        """`proxy`: the score is a rung's, by another protocol than the points', and does not compete with them."""
        self._remove(task)
        self.done_share[task.id] = 1.0
        result = f"done in {duration(job_s)}"
        if fid is not None:
            result += f", {'proxy ' if proxy else ''}FID {fid:.3f}"
            dataset = getattr(task.job, "dataset", "")
            if not proxy and (dataset not in self.best or fid < self.best[dataset][0]):
                self.best[dataset] = (fid, self.label(task))
        self._refresh(advance)
        self.console.print(f"  {self.label(task)}: {result}{note}")

    def failed(self, task: Task, failure: Failure, *, advance: int = 1) -> None:
        self._remove(task)
        self.done_share[task.id] = 1.0
        self.failed_count += 1
        self._refresh(advance)
        self.console.print(f"  {self.label(task)}: failed: {failure}", style="red")

    def _remove(self, task: Task) -> None:
        if task.id in self.running:
            self.progress.remove_task(self.running.pop(task.id))

    def _refresh(self, advance: int = 0) -> None:
        info = f"{len(self.running)} running, {self.failed_count} failed"
        if self.best:
            fid, label = list(self.best.values())[-1]
            info += f", best FID {fid:.3f} ({label})"
        total = sum(self.costs.values())
        done = sum(self.costs[i] * share for i, share in self.done_share.items() if i in self.costs)
        if done > 0:
            elapsed_s = time.monotonic() - self.started_s
            info += f", about {duration(elapsed_s * (total - done) / done)} left"
        if self.total is not None:
            self.progress.update(self.total, advance=advance, info=info)
