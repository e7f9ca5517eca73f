"""What a person sees of a search before it starts: what must be there first, every parameter's range, and the cost."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from sweeps.display.numbers import duration
from sweeps.display.plan import estimated_left_s, macs_left, show_jobs, work_left
from sweeps.planning.machine import Machine
from sweeps.planning.plan import Found
from sweeps.search.planning import SearchPlan, trial_core_s, trial_macs
from sweeps.search.study import StudySpec, chosen_sampler


def show_search(console: Console, plan: SearchPlan, found: Found, machine: Machine) -> None:
    """The jobs that come first, the spaces, and the time if no trial were stopped early."""
    show_jobs(console, plan, found)
    for studies in _alike(plan.studies):
        _show_study(console, studies)
    for size in plan.excluded:
        console.print(f"{size} is left out: no point there keeps to the limits")
    core_s = estimated_left_s(plan, found) + sum(study.num_trials * trial_core_s(study) for study in plan.studies)
    macs = macs_left(plan, found) + sum(study.num_trials * trial_macs(study) for study in plan.studies)
    estimate = machine.estimate(core_s=core_s, macs=macs)
    text = f"{plan.num_trials} trials; {work_left(plan, found)} first" + (f", {estimate}" if estimate else "")
    stops = any(study.halving is not None for study in plan.studies)
    console.print(text + (", less what early stopping saves" if stops else ""))


def _alike(studies: tuple[StudySpec, ...]) -> list[list[StudySpec]]:
    """Studies grouped by what they search: those of a grid's sizes differ in the size alone."""
    groups: dict[str, list[StudySpec]] = {}
    for study in studies:
        groups.setdefault(str((study.space.description(), study.known)), []).append(study)
    return list(groups.values())


def _show_study(console: Console, studies: list[StudySpec]) -> None:
    first = studies[0]
    sizes = ", ".join(size for study in studies for size in study.sizes)
    table = Table(title=f"Search space of {first.method} at {sizes}", title_justify="left", box=SIMPLE)
    for column in ("parameter", "values", "exists for"):
        table.add_column(column)
    for parameter in first.space.parameters:
        condition = "" if parameter.only_if is None else f"{parameter.only_if[0]} {parameter.only_if[1]}"
        table.add_row(parameter.name, str(parameter), condition)
    console.print(table)
    core_time = " to ".join(dict.fromkeys(duration(s) for s in sorted({*map(trial_core_s, (first, studies[-1]))})))
    lines = [
        f"objectives: {', '.join(first.objectives)}; {first.num_trials} trials each of {', '.join(s.name for s in studies)}",
        f"sampler: {chosen_sampler(first)}, seed {first.seed}; about {core_time} of a core per full trial",
        "tried first: " + "; ".join(_point_text(point) for point in first.known),
        f"early stopping: {_stopping_text(first)}",
    ]
    if first.limits:
        lines.append("limits: " + ", ".join(f"{name} <= {limit:,}" for name, limit in first.limits.items()))
    for line in lines:
        console.print(line)


def _point_text(point: dict) -> str:
    return ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in point.items())


def _stopping_text(study: StudySpec) -> str:
    if study.halving is not None:
        rungs, factor = " and ".join(str(rung) for rung in study.halving.rungs), study.halving.reduction_factor
        samples = study.halving.evaluation.num_samples
        return f"at step {rungs} of {study.grid.transfer.steps} one in {factor} goes on, by the FID of {samples} samples"
    if len(study.objectives) > 1:
        return "none, as several objectives have no order to stop by"
    return "none"
