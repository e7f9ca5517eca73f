"""What a person sees of a running sweep: the plan, live progress, and where to look at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from fine_core.data import short_name
from fine_core.dit import count_macs, count_parameters
from sweeps.costs import estimated_core_s, evaluation_macs, predicted_serve_bytes, total_macs
from sweeps.planning import Found, Plan
from trainables.model_spec import PointSpec
from trainables.scorer_spec import ExtractorSpec
from trainables.spec import JobSpec, TrainingJobSpec
from trainables.transfer_spec import RungSpec

WIDE_TERMINAL = 125  # columns that the full table of points needs
MAX_TABLE_ROWS = 500
PLAN_COLUMNS = ("stage", "point", "parameters", "MACs", "serve bytes", "work", "core time", "state")


def amount(value: float, unit: str = "") -> str:
    """A number to three digits with k, M, G, T or P."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5:
            return f"{value:.3g} {prefix}{unit}".rstrip()
        value /= 1000
    return f"{value:.3g} P{unit}"


def counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show_plan(console: Console, plan: Plan, found: Found, *, slots: int | None) -> None:
    """Every job with its size and cost. `slots`: parallel CPU workers for the time estimate, None if there are GPUs."""
    show_jobs(console, plan, found)
    text = f"{len(plan.points)} points; " + work_left(plan, found)
    console.print(text + time_left(estimated_left_s(plan, found), slots))


def show_jobs(console: Console, plan: Plan, found: Found) -> None:
    title, labels = f"Plan of sweep {plan.sweep_id}", plan.labels
    rows = [_job_cells(stage, job, labels[job.id], found) for stage, jobs in plan.stages.items() for job in jobs]
    if len(rows) > MAX_TABLE_ROWS:  # whose layout would take longer than the plan
        widths = [max(map(len, column)) for column in zip(PLAN_COLUMNS, *rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (PLAN_COLUMNS, *rows)]
        console.out("\n".join([title, *lines]), highlight=False)
        return
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for index, column in enumerate(PLAN_COLUMNS):
        table.add_column(column, justify="left" if index < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _job_cells(stage: str, job: JobSpec, label: str, found: Found) -> tuple[str, ...]:
    model, made = getattr(job, "model", None), job.id in found.made
    return (
        stage,
        label,
        f"{count_parameters(model):,}" if model else "",
        amount(count_macs(model)) if model else "",
        amount(predicted_serve_bytes(job), "B") if isinstance(job, PointSpec) else "",
        "" if made else _amount_of_work(job),
        duration(estimated_core_s(job, made=made)),
        "done" if job.id in found.finished else "made" if made else "to do",
    )


def work_left(plan: Plan, found: Found) -> str:
    missing = [job for job in plan.jobs if job.id not in found.finished]
    macs = sum(total_macs(job, made=job.id in found.made) for job in missing)
    scoring = sum(map(evaluation_macs, missing))
    share = f" ({scoring / macs:.0%} of it to score)" if macs else ""
    return f"{len(missing)} of {len(plan.jobs)} jobs to compute, {amount(macs, 'MAC')}{share}"


def estimated_left_s(plan: Plan, found: Found) -> float:
    """Seconds of one CPU core for the jobs to do."""
    return sum(estimated_core_s(job, made=job.id in found.made) for job in plan.jobs if job.id not in found.finished)


def time_left(core_s: float, slots: int | None) -> str:
    return "" if slots is None else f", about {duration(core_s / slots)} on {slots} CPU cores plus start-up (an estimate)"


def _amount_of_work(job: JobSpec) -> str:
    """Training steps, or what a job counts instead."""
    if isinstance(job, ExtractorSpec):
        return ""
    unit = "steps" if isinstance(job, TrainingJobSpec) else {"bank": "images", "curve": "scores"}[job.kind]
    return f"{job.total_steps:,} {unit}"


class ProgressView:
    """Live bars on a terminal, one line per event elsewhere. Fed by the sweep's own process only."""

    def __init__(
        self, console: Console, plan: Plan, found: Found, label: Callable[[JobSpec], str] = lambda job: job.label
    ) -> None:
        self.console, self.label = console, label
        missing = [job for job in plan.jobs if job.id not in found.finished]
        self.costs = {job.id: estimated_core_s(job, made=job.id in found.made) for job in missing}
        self.done_share: dict[str, float] = dict.fromkeys(self.costs, 0.0)
        self.running: dict[str, TaskID] = {}
        self.failed_count = 0
        self.best: tuple[float, str] | None = None
        self.started_s = time.monotonic()
        self.stage: TaskID | None = None
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

    def begin_stage(self, name: str, what: str, total: int) -> None:
        if self.stage is not None:
            self.progress.remove_task(self.stage)
        self.best = None  # stages score on different datasets
        self.stage = self.progress.add_task(f"stage {name}", total=total, info="starting workers")
        if not self.console.is_terminal:
            self.console.print(f"stage {name}: {what}")

    def started(self, job: JobSpec) -> None:
        if job.id not in self.running:
            self.running[job.id] = self.progress.add_task(f"  {self.label(job)}", total=job.total_steps or None, info="")
        self._refresh()

    def reported(self, job: JobSpec, metrics: dict[str, Any]) -> None:
        if job.id in self.running:
            info = metrics["phase"]
            if metrics["history"]:
                info += f" loss {metrics['history'][-1]['train/loss']:.4f}"
            self.progress.update(self.running[job.id], completed=metrics["step"], info=info)
        # Scoring and saving come after the last step.
        self.done_share[job.id] = 0.95 * metrics["step"] / max(1, metrics["total_steps"])
        self._refresh()

    def finished(self, job: JobSpec, record: dict[str, Any], *, note: str = "", advance: int = 1) -> None:
        """A rung's score is by another protocol than the points', and does not compete with them."""
        self._remove(job)
        self.done_share[job.id] = 1.0
        metrics = record["metrics"]
        result = f"done in {duration(metrics['job_s'])}"
        if "fid" in metrics:
            result += f", {'proxy ' if isinstance(job, RungSpec) else ''}FID {metrics['fid']:.3f}{note}"
            if not isinstance(job, RungSpec) and (self.best is None or metrics["fid"] < self.best[0]):
                self.best = (metrics["fid"], self.label(job))
        self._refresh(advance)
        self.console.print(f"  {self.label(job)}: {result}", highlight=False)

    def failed(self, job: JobSpec, reason: str, *, advance: int = 1) -> None:
        self._remove(job)
        self.done_share[job.id] = 1.0
        self.failed_count += 1
        self._refresh(advance)
        self.console.print(f"  {self.label(job)}: failed: {reason}", style="red", markup=False, highlight=False)

    def _remove(self, job: JobSpec) -> None:
        if job.id in self.running:
            self.progress.remove_task(self.running.pop(job.id))

    def _refresh(self, advance: int = 0) -> None:
        info = f"{len(self.running)} running, {self.failed_count} failed"
        if self.best:
            info += f", best FID {self.best[0]:.3f} ({self.best[1]})"
        total = sum(self.costs.values())
        done = sum(self.costs[i] * share for i, share in self.done_share.items() if i in self.costs)
        if done > 0:
            elapsed_s = time.monotonic() - self.started_s
            info += f", about {duration(elapsed_s * (total - done) / done)} left"
        if self.stage is not None:
            self.progress.update(self.stage, advance=advance, info=info)


def show_front(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """The points, cheapest first; those on the joint front of parameters against FID are marked.

    A narrow terminal gets the columns that matter most: a number cut off would be a wrong one.
    """
    title = f"Points on {short_name(rows[0]['dataset'])} (* = on the front of parameters against FID)"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    transferred = any(row["transfer"] != "none" for row in rows)
    cells_of = {"": lambda row: "*" if row["front_params_total"] else "", "point": lambda row: row["label"]}
    cells_of |= {"parameters": lambda row: f"{row['params_total']:,}", "FID": _fid_cell}
    cells_of["delta bytes" if transferred else "bytes"] = lambda row: f"{row['serve_bytes']:,}"
    if console.width >= WIDE_TERMINAL:
        if rows[0]["front_probability"] is not None:
            cells_of["P(front)"] = lambda row: f"{row['front_probability']:.2f}"
        cells_of["trained"] = lambda row: f"{row['params_trainable']:,}"
        if transferred:
            cells_of["source FID"] = _source_fid_cell
        else:
            cells_of["MACs"] = lambda row: amount(row["macs"])
            if rows[0]["kid"] is not None:
                cells_of["KID"] = lambda row: f"{row['kid']:.4f}"
        cells_of |= {"train s": lambda row: f"{row['train_s']:.1f}", "eval s": lambda row: f"{row['eval_s']:.1f}"}
    for column in cells_of:
        table.add_column(column, justify="left" if column in ("", "point") else "right", no_wrap=column != "point")
    for row in rows:
        style = "bold green" if row["front_params_total"] else None
        table.add_row(*(cell(row) for cell in cells_of.values()), style=style)
    console.print(table)


def _fid_cell(row: dict[str, Any]) -> str:
    return f"{row['fid']:.3f}" + ("" if row["fid_stderr"] is None else f" ± {row['fid_stderr']:.3f}")


def _source_fid_cell(row: dict[str, Any]) -> str:
    """FID on the source under the null label, of the base and after the transfer."""
    return "" if row["source_fid"] is None else f"{row['source_fid_before']:.1f} -> {row['source_fid']:.1f}"


def show_curves(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """FID for every share of steps given back to the base model, one line per method."""
    table = Table(title="FID by share of steps taken back by the base model", title_justify="left", box=SIMPLE)
    table.add_column("method", no_wrap=True)
    shares = sorted({row["share"] for row in rows})
    for share in shares:
        table.add_column(f"{share:.2f}", justify="right", no_wrap=True)
    for method in dict.fromkeys(row["method"] for row in rows):
        fids = {row["share"]: row["fid"] for row in rows if row["method"] == method}
        table.add_row(method, *[f"{fids[share]:.3f}" for share in shares])
    console.print(table)


def show_decomposition(console: Console, rows: Sequence[dict[str, Any]], metrics: dict[str, float], protocol: str) -> None:
    """What was lost in the decomposition of a given model: errors of its matrices, and FID on the way."""
    table = Table(
        title="Relative error of the decomposed matrices (0: exact, 1: as bad as zeros)", title_justify="left", box=SIMPLE
    )
    for column in ("matrix", "joint SVD", "after least squares"):
        table.add_column(column, justify="left" if column == "matrix" else "right", no_wrap=True)
    for row in rows:
        table.add_row(row["matrix"], f"{row['joint_svd']:.3f}", f"{row['als']:.3f}")
    console.print(table)
    fids = ", ".join(f"{name} {metrics[f'fid/{name}']:.3f}" for name in ("source", "decomposed", "trained"))
    console.print(f"FID of the given model and its learngene at the same size: {fids}\nprotocol: {protocol}", highlight=False)


def show_ledger(console: Console, totals: dict[str, dict[str, dict[str, float]]]) -> None:
    """What is kept on disk by method, and the seconds that training it (or sampling, for a bank) took."""
    table = Table(title="Storage ledger: bytes on disk (seconds to make them)", title_justify="left", box=SIMPLE)
    table.add_column("method")
    table.add_column("shared: learngene or banks", justify="right")
    table.add_column("all its points: weights or deltas", justify="right")
    for method, roles in totals.items():
        cells = [f"{roles[role]['bytes']:,} ({duration(roles[role]['seconds'])})" for role in ("initialize", "serve")]
        table.add_row(method, *(cell if roles[role]["bytes"] else "-" for cell, role in zip(cells, roles, strict=True)))
    console.print(table)
