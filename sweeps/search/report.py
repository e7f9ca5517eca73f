"""What a search has found: the best settings of each size beside the defaults, every trial, figures, and a file for grids."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fine_core.retention import RetentionSchedule
from fine_core.text import file_name, without_password
from mlflow_setup.curves import draw_best_schedules
from mlflow_setup.report import pyplot, write_csv
from sweeps.execution.recorder import Recorder
from sweeps.execution.sweep import Outcome, Surroundings
from sweeps.planning.names import MethodNames
from sweeps.planning.settings import TunedTransfer, write_tuned
from sweeps.results.curves import schedule_curves
from sweeps.results.points import Results, point_result
from sweeps.results.report import executable_path, report_folder, show_where, write_fronts
from sweeps.search.agenda import NO_TRIAL, SearchAgenda
from sweeps.search.study import OUTCOME, ScheduleStudy
from trainables.specs.transfers import TransferSpec
from trainables.storage.store import Store

BEST_FILE = "best.json"
SCHEDULE = "schedule"  # the option of Diff-Tuning whose curves are drawn


class SearchReport:
    """The report of studies as they stand, also of unfinished ones."""

    def __init__(self, studies: list[ScheduleStudy], store: Store, folder: Path, console: Console) -> None:
        self.studies, self.store, self.folder, self.console = studies, store, folder, console
        self.best = [(study, size, trial) for study in studies for size, trial in _best_by_size(study).items()]

    @property
    def best_ids(self) -> set[str]:
        """Ids of the transfers that the defaults do not equal."""
        return {study.spec.transfer(trial.params).id for study, _, trial in self.best} - {job.id for job in self._defaults()}

    def _defaults(self) -> list[TransferSpec]:
        return [study.spec.default_transfer(size) for study, size, _ in self.best]

    @property
    def compared(self) -> Results:
        """The best of each size and its default, where there is more than one size to compare."""
        jobs = [study.spec.transfer(trial.params) for study, _, trial in self.best] + self._defaults()
        if len({job.size for job in jobs}) < 2:
            return []
        unique = {job.id: job for job in jobs}
        spec = self.studies[0].spec
        return [result for job in unique.values() if (result := point_result(spec.point(job), self.store)) is not None]

    def write(self) -> list[Path]:
        """Print the tables and write the files; returns them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = [row for study in self.studies for row in trial_rows(study)]
        files = [write_csv(rows, self.folder / "trials.csv")] if rows else []
        self._show_studies()
        if not self.best:
            scored = any(study.complete_trials() for study in self.studies)
            self.console.print("No scored trial keeps to the limits." if scored else "No trial has been scored yet.")
            return files
        self._show_best()
        files.append(write_tuned(self.folder / BEST_FILE, [self._entry(*found) for found in self.best]))
        files += self._figures()
        return files

    def _entry(self, study: ScheduleStudy, size: str, trial: FrozenTrial) -> tuple[TunedTransfer, dict[str, Any]]:
        spec = study.spec
        transfer = spec.transfer(trial.params)
        tuned = TunedTransfer(
            method=spec.method, initialization=spec.initialization, size=size, settings=spec.space.settings(trial.params)
        )
        facts = {"study": spec.name, "trial": trial.number, "transfer_id": transfer.id, "target": transfer.dataset}
        protocol = str(self.store.record(spec.point(transfer).score).protocol)
        facts |= {"protocol": protocol, "seed": transfer.seed}
        return tuned, facts | dict(zip(spec.objectives, trial.values, strict=True))

    def _show_studies(self) -> None:
        table = Table(title="Trials", title_justify="left", box=SIMPLE)
        table.add_column("study", no_wrap=True)
        for column in ("scored", "stopped early", "diverged", "training steps", "of all"):
            table.add_column(column, justify="right", no_wrap=True)
        for study in self.studies:
            counts = trial_counts(study)
            table.add_row(
                study.spec.label,
                *(str(counts[name]) for name in ("scored", "stopped", "diverged")),
                f"{counts['steps']:,}",
                f"{counts['steps'] / max(1, counts['full_steps']):.0%}",
            )
        self.console.print(table)

    def _show_best(self) -> None:
        table = Table(title="Best settings by size", title_justify="left", box=SIMPLE)
        searched = {name: None for study, _, _ in self.best for name in _setting_names(study)}
        table.add_column("size", no_wrap=True)
        for name in searched:
            table.add_column(name.replace("_", " "), justify="right")
        others = [name for name in self.best[0][0].spec.objectives if name != "fid"]
        for column in ("FID", "defaults' FID", *others):
            table.add_column(column.replace("_", " "), justify="right", no_wrap=True)
        for study, size, trial in self.best:
            settings = study.spec.space.settings(trial.params)
            default = self.store.read_record(study.spec.point(study.spec.default_transfer(size)).score)
            plain = settings.plain()
            cells = [_shown(plain[name]) if name in plain else "" for name in searched]
            before = "-" if default is None else f"{default.metrics['fid']:.3f}"
            values = dict(zip(study.spec.objectives, trial.values, strict=True))
            further = [f"{values[name]:,.0f}" if name.endswith("_bytes") else _shown(values[name]) for name in others]
            table.add_row(study.spec.named(size), *cells, f"{trial.user_attrs['fid']:.3f}", before, *further)
        self.console.print(table)
        self.console.print(f"protocol: {self._protocol(self.best[0][0])}")

    def _figures(self) -> list[Path]:
        files = []
        drawn = {
            study.spec.named(size): (study, trial)
            for study, size, trial in self.best
            if SCHEDULE in study.spec.space.default.plain()
        }
        if drawn:
            panels = {size: _schedule_panel(study, trial) for size, (study, trial) in drawn.items()}
            protocol = self._protocol(next(iter(drawn.values()))[0])
            files.append(draw_best_schedules(panels, self.folder / "best-schedules.png", protocol=protocol))
        for study in self.studies:
            if study.scored():
                files += self._optuna_figures(study)
        return files

    def _optuna_figures(self, study: ScheduleStudy) -> list[Path]:
        from optuna.visualization import matplotlib as plots

        objectives = study.spec.objectives
        fid: dict[str, Any] = {"target_name": "FID"}
        if len(objectives) > 1:
            fid["target"] = lambda trial: trial.values[objectives.index("fid")]
        # A parameter that few trials have says little about its importance.
        always = [parameter.name for parameter in study.spec.space.parameters if parameter.only_if is None]
        figures = {
            "history": lambda: plots.plot_optimization_history(study.study, **fid),
            "importance": lambda: plots.plot_param_importances(study.study, params=always, **fid),
        }
        if len(objectives) > 1:
            figures["pareto-front"] = lambda: plots.plot_pareto_front(study.study, target_names=list(objectives))
        files = []
        for name, draw in figures.items():
            path = self.folder / f"{name}-{file_name(study.spec.label)}.png"
            title = f"{name.replace('-', ' ')} of {study.spec.label}\n{self._protocol(study)}"
            try:
                files.append(_save(draw, path, title=title, log_scale=name == "history"))
            except (ValueError, RuntimeError) as error:  # too few trials, or all with one score
                self.console.print(f"no figure {name} of {study.spec.label}: {error}")
        return files

    def _protocol(self, study: ScheduleStudy) -> str:
        return str(self.store.record(study.spec.point(study.scored()[0]).score).protocol)

    def summary(self) -> dict[str, float]:
        """Metrics of the whole search."""
        counts = [trial_counts(study) for study in self.studies]
        metrics = {f"trials_{name}": sum(c[name] for c in counts) for name in ("scored", "stopped", "diverged")}
        metrics["training_steps"] = sum(c["steps"] for c in counts)
        metrics["training_steps_without_stopping"] = sum(c["full_steps"] for c in counts)
        return metrics | {f"best_fid/{size}": trial.user_attrs["fid"] for _, size, trial in self.best}


def _best_by_size(study: ScheduleStudy) -> dict[str, FrozenTrial]:
    """The trial with the lowest FID of the full protocol at each size, among those that keep to the limits."""
    best: dict[str, FrozenTrial] = {}
    for trial in study.complete_trials():
        size = trial.user_attrs["size"]
        if all(value <= 0 for value in trial.constraints.values()) and (
            size not in best or trial.user_attrs["fid"] < best[size].user_attrs["fid"]
        ):
            best[size] = trial
    return {size: best[size] for size in study.spec.sizes if size in best}


def trial_counts(study: ScheduleStudy) -> dict[str, int]:
    """How many trials ended how, the steps that were trained for them, and the steps of training each to its end."""
    counts = dict.fromkeys(("scored", "stopped", "diverged"), 0)
    steps: dict[str, int] = {}  # by transfer: a point proposed twice is trained once
    for trial in study.finished_trials:
        counts[trial.user_attrs[OUTCOME].split()[0].rstrip(":")] += 1
        transfer_id = trial.user_attrs["transfer_id"]
        steps[transfer_id] = max(steps.get(transfer_id, 0), trained_steps(study, trial))
    return counts | {"steps": sum(steps.values()), "full_steps": len(steps) * study.spec.grid.transfer.steps}


def trained_steps(study: ScheduleStudy, trial: FrozenTrial) -> int:
    """Steps for which a finished trial was trained; of one that diverged, those that are known to have gone well."""
    if trial.state == TrialState.COMPLETE:
        return study.spec.grid.transfer.steps
    return trial.last_step or 0


def trial_rows(study: ScheduleStudy) -> list[dict[str, Any]]:
    """One row per finished trial, all with the same columns."""
    searched, rows = _setting_names(study), []
    for trial in study.finished_trials:
        # Of a stopped trial Optuna calls its last proxy score its value, which is no score of the full protocol.
        settings = study.spec.space.settings(trial.params)
        values = trial.values if trial.state == TrialState.COMPLETE else [None] * len(study.spec.objectives)
        rows.append(
            {
                "study": study.spec.name,
                "trial": trial.number,
                "size": trial.user_attrs["size"],
                "outcome": trial.user_attrs[OUTCOME],
                "steps": trained_steps(study, trial),
                "transfer_id": trial.user_attrs["transfer_id"],
                **{name: settings.plain()[name] for name in searched},
                **dict(zip(study.spec.objectives, values, strict=True)),
                "proxy_fid": trial.intermediate_values.get(trial.last_step),
            }
        )
    return rows


def _setting_names(study: ScheduleStudy) -> list[str]:
    """The settings that a study searches, by their plain names."""
    return [option.name for option in study.spec.space.options]


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _schedule_panel(study: ScheduleStudy, trial: FrozenTrial) -> dict[str, Any]:
    """The curves of a size's best schedule and of the default's."""
    best, default = study.spec.space.settings(trial.params), study.spec.space.default
    return {
        "best": _curves(best.plain()),
        "default": _curves(default.plain()),
        "fid": trial.user_attrs["fid"],
    }


def _curves(settings: Mapping[str, Any]) -> dict[str, Any]:
    weight = f", weight {settings['retention_weight']:.2g}" if "retention_weight" in settings else ""
    return {"name": settings[SCHEDULE] + weight, **schedule_curves(RetentionSchedule.parse(settings[SCHEDULE]))}


def _save(draw: Callable[[], Any], path: Path, *, title: str, log_scale: bool) -> Path:
    """Optuna's figures set the style of all that follow, so theirs is kept to themselves."""
    from matplotlib.ticker import ScalarFormatter

    plt = pyplot()
    with plt.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a feature that may change, and of parameters that few trials have
        axes = draw()
        axes.set_title("", loc="left")
        axes.set_title(title, fontsize=8)
        if log_scale:  # one bad trial would flatten all others
            axes.set_yscale("log", subs=(2, 5))
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_minor_formatter(ScalarFormatter())
        axes.figure.savefig(path, dpi=110, bbox_inches="tight")
        plt.close(axes.figure)
    return path


def report_search(
    agenda: SearchAgenda, at: Surroundings, recorder: Recorder, outcome: Outcome, *, next_steps: NextSteps
) -> int:
    """Write the report of studies as they stand. Returns the exit code."""
    runs, console, store, folder = recorder.runs, at.console, at.store, report_folder(agenda.plan, at.data_folder)
    _record_stopped(agenda, recorder, store)
    report = SearchReport(agenda.studies, store, folder, console)
    files = report.write()
    if report.compared:
        names = MethodNames([result.job for result in report.compared], tuned=report.best_ids)
        files += write_fronts(report.compared, names, folder, runs, console)
    runs.log_files(files)
    datasets = list(dict.fromkeys(study.spec.grid.transfer.target for study in agenda.studies))
    show_where(files, datasets, agenda.plan.sweep_id, runs, at.tracking, console)
    _show_next_steps(report, next_steps, console)
    broken = [(study, number, reason) for study in agenda.studies for number, reason in study.broken.items()]
    for study, number, reason in broken:
        name = study.spec.label if number == NO_TRIAL else f"{study.spec.label} trial {number}"
        console.print(f"failed: {name}: {reason}", style="red", soft_wrap=True)
    failed = bool(broken) or not report.best
    timings = {f"timing/{name}_s": value for name, value in outcome.timings.items()}
    runs.close("FAILED" if failed else "FINISHED", report.summary() | timings)
    if broken:
        console.print("Run the same command again to retry what failed.")
    return 1 if failed else 0


@dataclass(frozen=True, kw_only=True)
class NextSteps:
    """What the report suggests: options of a grid that takes the result, and where the studies lie."""

    grid_options: Sequence[str]
    study_storage: str


def _record_stopped(agenda: SearchAgenda, recorder: Recorder, store: Store) -> None:
    """Runs of trials that were stopped early while MLflow was away, or just before this process was killed."""
    for study in agenda.studies:
        for transfer, outcome in study.stopped():
            if recorder.runs.is_stopped(transfer.id):
                continue
            recorder.start(transfer)
            for rung in study.rungs(transfer):
                if (record := store.read_record(rung)) is not None:
                    recorder.rung(rung, record)
            recorder.stop(transfer.id, outcome)


def _show_next_steps(report: SearchReport, steps: NextSteps, console: Console) -> None:
    """How the result is used, and where else the studies can be looked at."""
    lines = []
    waiting = sum(study.num_waiting for study in report.studies)
    if waiting:
        lines.append(f"{waiting} known points were not tried, for there were no trials left; raise --trials")
    if report.best:
        command = ["python", "sweeps/size_grid.py", *steps.grid_options]
        command += ["--tuned", str(report.folder / BEST_FILE)]
        lines.append(f"Use it in a grid:  {shlex.join(map(without_password, command))}")
    dashboard = shlex.join([executable_path("optuna-dashboard"), without_password(steps.study_storage)])
    lines.append(f"Look at the study: {dashboard}  (of the extra: pip install -e '.[dashboard]')")
    for line in lines:
        console.print(line, soft_wrap=True)
