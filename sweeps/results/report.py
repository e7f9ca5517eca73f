"""The report of a grid: fronts of every protocol, curves, decomposition, ledger and samples."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from fine_core.data.registry import short_name
from fine_core.text import file_name, without_password
from mlflow_setup.curves import draw_curves, draw_schedules
from mlflow_setup.initializations import draw_costs, draw_initializations
from mlflow_setup.report import draw_front, interactive_front, write_csv
from mlflow_setup.runs import SweepRuns
from mlflow_setup.tracking import Tracking
from mlflow_setup.view import save_chart_view
from sweeps.display.initializations import show_costs, show_initializations
from sweeps.display.tables import show_curves, show_decomposition, show_front, show_ledger
from sweeps.execution.agenda import Agenda
from sweeps.execution.recorder import Recorder
from sweeps.execution.sweep import Outcome, Surroundings
from sweeps.planning.names import MethodNames
from sweeps.planning.plan import Plan
from sweeps.planning.points import DecompositionScores
from sweeps.results.curves import curve_rows, decomposition_rows, used_schedules
from sweeps.results.initializations import cost_rows, initialization_rows
from sweeps.results.ledger import ledger_rows, ledger_totals
from sweeps.results.pareto import Point, by_protocol, points_from, report_rows
from sweeps.results.points import Results, sample_picture
from trainables.specs.transfers import TransferSpec
from trainables.storage.store import Store

MLFLOW_PORT = 5000


def report_folder(plan: Plan, data_folder: Path) -> Path:
    return data_folder / "reports" / plan.sweep_id


def report_grid(agenda: Agenda, at: Surroundings, recorder: Recorder, outcome: Outcome) -> int:
    """Write the report of whatever is finished. Returns the exit code."""
    plan, store, runs, console = agenda.plan, at.store, recorder.runs, at.console
    results, folder = agenda.results(), report_folder(plan, at.data_folder)
    if results:
        files = write_fronts(results, plan.names, folder, runs, console)
        files += _write_rest(plan, results, folder, store, console)
        runs.log_files(files)
        runs.log_files(_copy_samples(agenda, results, folder, store), "samples")
        datasets = list(dict.fromkeys(point.model.dataset for point in plan.points))
        show_where(files, datasets, plan.sweep_id, runs, at.tracking, console)
    failed = [task for task in plan.tasks if any(store.read_record(job) is None for job in task.jobs)]
    for task in failed:
        reason = outcome.failures.get(task.id, "not computed")
        console.print(f"failed: {agenda.label(task.job)}: {reason}", style="red", soft_wrap=True)
    summary: dict[str, float] = {"points_done": len(results), "points_failed": len(plan.points) - len(results)}
    summary |= {f"timing/{name}_s": value for name, value in outcome.timings.items()}
    runs.close("FAILED" if failed else "FINISHED", summary)
    if failed:
        console.print("Run the same command again to retry what failed.")
    return 1 if failed else 0


def write_fronts(results: Results, names: MethodNames, folder: Path, runs: SweepRuns, console: Console) -> list[Path]:
    """Print and draw the front of every protocol: scores of different protocols never share a table or a plot."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = by_protocol(points_from(results, names))
    files: list[Path] = []
    for points, suffix in zip(groups.values(), _suffixes(list(groups.values())), strict=True):
        rows = report_rows(points)
        title = f"Size against FID on {short_name(points[0].dataset)}"
        files.append(write_csv(rows, folder / f"pareto{suffix}.csv"))
        files.append(draw_front(rows, folder / f"pareto{suffix}.png", title=title))
        files.append(interactive_front(rows, folder / f"pareto{suffix}.html", title=title))
        for row in rows:
            for trial_id in row["trial_ids"].split():
                runs.tag_child(trial_id, "pareto", str(row["front_params_total"]).lower())
        show_front(console, rows)
        console.print(f"protocol: {rows[0]['protocol']}")
    return files


def _suffixes(groups: list[list[Point]]) -> list[str]:
    """What tells the files of several protocols apart: the target's name, and a number where that is not enough."""
    suffixes: list[str] = []
    for points in groups:
        base = any(point.transfer == "none" for point in points)
        suffix = "" if base else f"-{file_name(short_name(points[0].dataset))}"
        suffixes.append(f"{suffix}-{len(suffixes) + 1}" if suffix in suffixes else suffix)
    return suffixes


def _write_rest(plan: Plan, results: Results, folder: Path, store: Store, console: Console) -> list[Path]:
    files: list[Path] = []
    transfers = [point.model for point in plan.points if isinstance(point.model, TransferSpec)]
    if schedules := used_schedules(transfers):
        files.append(draw_schedules(schedules, folder / "schedules.png"))
    if curves := curve_rows(plan.curves, plan.names, store):
        show_curves(console, curves)
        files.append(write_csv(curves, folder / "forgetting.csv"))
        files.append(draw_curves(curves, folder / "forgetting.png"))
    for scores in plan.decompositions:
        files += _write_decomposition(scores, folder, store, console)
    if rows := initialization_rows(plan.points, store):
        files += _write_initializations(rows, folder, console)
    ledger = ledger_rows(results, store, plan.names)
    files.append(write_csv(ledger, folder / "ledger.csv"))
    show_ledger(console, ledger_totals(ledger))
    return files


def _write_initializations(rows: list[dict[str, Any]], folder: Path, console: Console) -> list[Path]:
    costs = cost_rows(rows)
    show_initializations(console, rows)
    show_costs(console, costs)
    flat = [{name: json.dumps(value) if name == "fid_at" else value for name, value in row.items()} for row in rows]
    return [
        write_csv(flat, folder / "initializations.csv"),
        write_csv(costs, folder / "costs.csv"),
        draw_initializations(rows, folder / "initializations.png"),
        draw_costs(rows, folder / "costs.png"),
    ]


def _write_decomposition(scores: DecompositionScores, folder: Path, store: Store, console: Console) -> list[Path]:
    record = store.read_record(scores.decomposition)
    named = {name: store.read_record(getattr(scores, name)) for name in ("source", "decomposed", "trained")}
    if record is None or None in named.values():
        return []
    rows = decomposition_rows(scores.decomposition, record)
    fids = {name: found.metrics["fid"] for name, found in named.items() if found is not None}
    show_decomposition(console, rows, fids, str(store.record(scores.source).protocol))
    return [write_csv(rows, folder / "decomposition.csv")]


def _copy_samples(agenda: Agenda, results: Results, folder: Path, store: Store) -> list[Path]:
    """The points' pictures side by side, under readable names."""
    folder = folder / "samples"
    folder.mkdir(exist_ok=True)
    files = []
    for result in results:
        if (path := sample_picture(result, store)) is not None:
            files.append(Path(shutil.copyfile(path, folder / f"{file_name(agenda.label(result.job))}.png")))
    return files


def show_where(
    files: list[Path], datasets: list[str], sweep_id: str, runs: SweepRuns, tracking: Tracking, console: Console
) -> None:
    """Where the pictures lie, and how the runs are looked at."""
    for file in files:
        if file.suffix in (".png", ".html"):
            console.print(str(file), soft_wrap=True)
    if tracking.uri.startswith("http"):
        server = without_password(tracking.uri.rstrip("/"))
    else:
        server = f"http://127.0.0.1:{MLFLOW_PORT}"
        executable = shlex.quote(executable_path("mlflow"))
        command = f"{executable} ui --port {MLFLOW_PORT} --backend-store-uri {shlex.quote(without_password(tracking.uri))}"
        console.print(f"Compare the runs:  {command}", soft_wrap=True)
    for dataset in datasets:
        view = _save_view(dataset, sweep_id, runs, tracking)
        if view is not None:
            console.print(f"then open          {server}{view}", soft_wrap=True)


def _save_view(dataset: str, sweep_id: str, runs: SweepRuns, tracking: Tracking) -> str | None:
    return runs.attempt(lambda: save_chart_view(tracking, sweep_id, runs.parent_id, dataset, short_name(dataset)))


def executable_path(name: str) -> str:
    """A command of this Python, which need not be on the PATH."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name
