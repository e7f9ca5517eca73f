"""The plan of a sweep: every job with its size, cost and state."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fine_core.dit import count_macs, count_parameters
from sweeps.display.numbers import amount, duration
from sweeps.planning.costs import estimated_core_s, evaluation_macs, predicted_serve_bytes, total_macs
from sweeps.planning.plan import Found, Plan
from trainables.specs.base import JobSpec, TrainingJobSpec
from trainables.specs.models import PointSpec
from trainables.specs.scorers import ExtractorSpec

MAX_TABLE_ROWS = 500
PLAN_COLUMNS = ("stage", "point", "parameters", "MACs", "serve bytes", "work", "core time", "state")


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
