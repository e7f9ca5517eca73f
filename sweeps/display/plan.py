"""The plan of a sweep: every task with its size, cost and state."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fine_core.dit import count_macs, count_parameters
from sweeps.display.numbers import amount, duration
from sweeps.planning.costs import core_s, result_bytes, scoring_macs, total_macs
from sweeps.planning.machine import Machine
from sweeps.planning.plan import Found, Plan
from trainables.jobs.registry import kind_of
from trainables.specs.base import JobSpec
from trainables.specs.tasks import Task

MAX_TABLE_ROWS = 500
PLAN_COLUMNS = ("stage", "point", "parameters", "MACs", "bytes", "work", "scores", "core time", "state")


def show_plan(console: Console, plan: Plan, found: Found, machine: Machine) -> None:
    """Every job with its size and cost, and how long they take on a machine."""
    show_jobs(console, plan, found)
    for line in plan.left_out:
        console.print(line)
    text = f"{len(plan.points)} points; " + work_left(plan, found)
    estimate = machine.estimate(core_s=estimated_left_s(plan, found), macs=macs_left(plan, found))
    console.print(f"{text}, {estimate}" if estimate else text)


def show_jobs(console: Console, plan: Plan, found: Found) -> None:
    title, labels = f"Plan of sweep {plan.sweep_id}", plan.labels
    rows = [_cells(stage, task, labels[task.id], found) for stage, tasks in plan.stages.items() for task in tasks]
    if len(rows) > MAX_TABLE_ROWS:  # whose layout would take longer than the plan
        widths = [max(map(len, column)) for column in zip(PLAN_COLUMNS, *rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (PLAN_COLUMNS, *rows)]
        console.out("\n".join([title, *lines]))
        return
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for index, column in enumerate(PLAN_COLUMNS):
        table.add_column(column, justify="left" if index < 2 else "right", no_wrap=column != "point")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _cells(stage: str, task: Task, label: str, found: Found) -> tuple[str, ...]:
    model, jobs = getattr(task.job, "model", None), found.missing(task) or task.jobs
    return (
        stage,
        label,
        f"{count_parameters(model):,}" if model else "",
        amount(count_macs(model)) if model else "",
        amount(size, "B") if (size := result_bytes(task.job)) else "",
        _work(jobs),
        str(sum(kind_of(job).is_score for job in jobs) or ""),
        duration(core_s(jobs)),
        found.state(task),
    )


def work_left(plan: Plan, found: Found) -> str:
    missing = [job for job in plan.jobs if job.id not in found.finished]
    macs, scoring = macs_left(plan, found), scoring_macs(missing)
    share = f" ({scoring / macs:.0%} of it to score)" if macs else ""
    return f"{len(missing)} of {len(plan.jobs)} jobs to compute, {amount(macs, 'MAC')}{share}"


def macs_left(plan: Plan, found: Found) -> float:
    """Multiply-accumulates of the jobs to do."""
    return total_macs(job for job in plan.jobs if job.id not in found.finished)


def estimated_left_s(plan: Plan, found: Found) -> float:
    """Seconds of one CPU core for the jobs to do."""
    return core_s(job for job in plan.jobs if job.id not in found.finished)


def _work(jobs: tuple[JobSpec, ...]) -> str:
    """Training steps, or images of a bank."""
    return ", ".join(f"{job.total_steps:,} {kind_of(job).unit}" for job in jobs if job.total_steps)
