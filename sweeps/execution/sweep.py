"""Run a planned sweep from its first missing job to its report; the same call again goes on where it stopped."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from fine_core.data.registry import short_name
from mlflow_setup.curves import draw_curves, draw_schedules
from mlflow_setup.report import draw_front, interactive_front, write_csv
from mlflow_setup.runs import SweepRuns
from mlflow_setup.tracking import Tracking, TrackingError
from mlflow_setup.view import save_chart_view
from sweeps.display.numbers import counted, duration
from sweeps.display.progress import ProgressView
from sweeps.display.tables import show_curves, show_decomposition, show_front, show_ledger
from sweeps.execution.cluster import connect_cluster, is_joined, wait_for_capacity
from sweeps.execution.errors import StoppedSweep
from sweeps.execution.runner import RunnerSpec, trials_that_fit
from sweeps.execution.tune_stage import FixedJobs, JobSource, run_stage
from sweeps.planning.plan import Plan, found_beside
from sweeps.results.curves import curve_rows, decomposition_rows, used_schedules
from sweeps.results.ledger import ledger_rows, ledger_totals
from sweeps.results.pareto import Point, Results, by_protocol, points_from, report_rows
from trainables.specs.base import JobSpec
from trainables.specs.models import FineSpec, PointSpec
from trainables.specs.transfers import TransferSpec
from trainables.storage.files import SAMPLES_FILE
from trainables.storage.store import Store

MLFLOW_PORT = 5000
MAX_NAMED = 5  # unreadable images
PLAIN = str.maketrans({" ": "-", ":": None, ",": None})  # of a label in a file's name


class Sweep:
    """One sweep in progress: hears of every job and passes it on to the display and to MLflow."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        params: dict[str, Any],
        *,
        store: Store,
        tracking: Tracking,
        runner: RunnerSpec,
        data_folder: Path,
        console: Console,
    ) -> None:
        self.name, self.plan, self.params = name, plan, params
        self.store, self.tracking, self.runner, self.console = store, tracking, runner, console
        self.names, self.labels = plan.names, plan.labels
        self.report_folder = data_folder / "reports" / plan.sweep_id
        self.reasons: dict[str, str] = {}
        self.timings: dict[str, float] = {}
        self.said_unreadable: set[str] = set()

    def run(self) -> int:
        """Compute what is missing, then report. Returns the exit code: 0 all points done, 1 some failed."""
        missing = self._missing()
        to_do = self._is_unfinished(missing)
        try:
            self.runs = SweepRuns(self.tracking, self.plan.sweep_id, f"{self.name}-{self.plan.sweep_id}", self.params)
        except TrackingError as error:
            raise StoppedSweep(str(error)) from error
        try:
            if to_do:
                self._compute(missing)
            self._record_finished()
            self._clear_up()
            return self._report()
        except KeyboardInterrupt:
            self.runs.close("KILLED")
            raise
        except BaseException:
            self.runs.close("FAILED")
            raise

    def _clear_up(self) -> None:
        """Delete checkpoints that a sweep which died has left of jobs that are finished."""
        finished = [job for job in self.plan.jobs if self.store.read_record(job) is not None]
        for path, _ in self.store.checkpoint_folders(finished):
            self.store.delete(path)

    def _missing(self) -> dict[str, tuple[JobSpec, ...]]:
        """What is to be computed: also again, where it is damaged and needed."""
        while True:
            missing = {
                stage: tuple(job for job in jobs if self.store.read_record(job) is None)
                for stage, jobs in self.plan.stages.items()
            }
            needs = {need.id for need in self._needs(missing)}
            finished = [job for job in self.plan.jobs if job.id in needs and self.store.read_record(job) is not None]
            damaged = [need for need in finished if not self.store.is_intact(need)]
            if not damaged:
                return missing
            for need in damaged:
                self.console.print(f"{self._label(need)} is damaged in the store; it is made again", style="yellow")
                self.store.discard(need)

    def _needs(self, missing: dict[str, tuple[JobSpec, ...]]) -> Iterable[JobSpec]:
        """What the missing jobs are made from."""
        return (need for jobs in missing.values() for job in jobs for need in job.needs)

    def _what_for(self, num_missing: int) -> str:
        return f" for {num_missing}"

    def _is_unfinished(self, missing: dict[str, tuple[JobSpec, ...]]) -> bool:
        return any(missing.values())

    def _compute(self, missing: dict[str, tuple[JobSpec, ...]]) -> None:
        found = found_beside([job for jobs in missing.values() for job in jobs], self.plan, self.store)
        total, num_missing = len(self.plan.jobs), len(self.plan.jobs) - len(found.finished)
        self.console.print(
            f"{total - num_missing} of {total} jobs are in the store already; starting Ray{self._what_for(num_missing)}"
        )
        started = time.monotonic()
        connect_cluster()
        # `ray job stop` ends the sweep as Ctrl-C does. Set after Ray, which has a handler of its own.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        self.timings["ray_start"] = time.monotonic() - started
        try:
            self._wait_for_capacity(missing)
            with ProgressView(self.console, self.plan, found, self._label) as self.view:
                self._run_stages(missing)
        finally:
            ray.shutdown()

    def _wait_for_capacity(self, missing: dict[str, tuple[JobSpec, ...]]) -> None:
        demands = {str(demand): demand for jobs in missing.values() for job in jobs if (demand := self.runner.demand_of(job))}
        for bundle, number in demands.values():
            wait_for_capacity(bundle, number, lambda text: self.console.print(text, highlight=False))

    def _run_stages(self, missing: dict[str, tuple[JobSpec, ...]]) -> None:
        for stage, jobs in missing.items():
            if runnable := self._runnable(jobs):
                self._run_stage(stage, FixedJobs(runnable), counted(len(runnable), "job"), len(runnable))
                self._show_overhead(stage, runnable)

    def _run_stage(self, stage: str, source: JobSource, what: str, total: int) -> None:
        started = time.monotonic()
        self.view.begin_stage(stage, what, total)
        run_stage(f"{self.plan.sweep_id}-{stage}", source, self.store, self.runner, self)
        self.timings[stage] = time.monotonic() - started

    def _runnable(self, jobs: tuple[JobSpec, ...]) -> tuple[JobSpec, ...]:
        """Jobs whose artifacts are there; the others fail with the artifact's name."""
        runnable = []
        for job in jobs:
            lacking = [need for need in job.needs if self.store.read_record(need) is None]
            if lacking:
                self.started(job)
                self.failed(job, f"needs the {lacking[0].label}, which failed: {self.reasons.get(lacking[0].id, 'see above')}")
            else:
                runnable.append(job)
        return tuple(runnable)

    def _show_overhead(self, stage: str, jobs: tuple[JobSpec, ...]) -> None:
        records = [record for job in jobs if (record := self.store.read_record(job))]
        if not records:
            return
        line = f"stage {stage}: {duration(self.timings[stage])}"
        if stage in ("base", "transfer") and not is_joined():  # a cluster that grows is not full all the time
            slots = min(trials_that_fit(self.runner), len(jobs))
            slots = min(slots, self.runner.max_concurrent or slots)
            work_s = sum(r["metrics"]["eval_s"] + (0.0 if r["made_by"] else r["metrics"]["train_s"]) for r in records)
            work_s += sum(r["metrics"].get("forgetting/eval_s", 0.0) for r in records)
            outside_s = (self.timings[stage] * slots - work_s) / len(jobs)
            line += f"; {outside_s:.1f} s per trial outside training and evaluation, on {slots} slots"
            self.timings[f"{stage}_outside_per_trial"] = outside_s
        self.console.print(line, highlight=False)

    def _label(self, job: JobSpec) -> str:
        return self.labels.get(job.id, job.label)

    # The listener's side: called in this process, by the stage's Tune callbacks.

    def started(self, job: JobSpec) -> None:
        self.view.started(job)
        if isinstance(job, PointSpec):
            self._start_child(job)

    def _start_child(self, job: PointSpec) -> None:
        size, transfer = job.size, job.method if isinstance(job, TransferSpec) else "none"
        method = self.names.of(job)
        tags = {"method": method, "initialization": job.initialization.name, "transfer": transfer, "dataset": job.dataset}
        tags |= {"depth": str(size.depth), "width": str(size.width), "pareto": "unknown"}
        params = {"method": method, "depth": size.depth, "width": size.width, "num_heads": size.num_heads}
        params |= {"seed": job.seed, "steps": job.training.steps, "batch_size": job.training.batch_size, "lr": job.training.lr}
        if isinstance(job.initialization, FineSpec):
            params["sigma_steps"] = job.initialization.sigma_steps
        if isinstance(job, TransferSpec):
            params |= {"base_trial_id": job.base.id, "gamma_span": job.gamma_span}
            params |= {} if job.rehearsal is None else vars(job.rehearsal)
        self.runs.start_child(job.id, self._label(job), tags, params)

    def reported(self, job: JobSpec, metrics: dict[str, Any]) -> None:
        self.view.reported(job, metrics)
        if isinstance(job, PointSpec):
            self.runs.log_history(job.id, metrics["history"])

    def finished(self, job: JobSpec) -> None:
        record = self.store.read_record(job)
        self.view.finished(job, record)
        self._say_unreadable(job, record)
        if isinstance(job, PointSpec):
            self._finish_child(job, record)

    def _say_unreadable(self, job: JobSpec, record: dict[str, Any]) -> None:
        """Once for each dataset."""
        names = record["unreadable_images"]
        if names and job.dataset not in self.said_unreadable:
            self.said_unreadable.add(job.dataset)
            what = f"{counted(len(names), 'image')} of {short_name(job.dataset)} cannot be read"
            listed = ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
            self.console.print(f"  {what}; the next of the class takes its place: {listed}", style="yellow", highlight=False)

    def _finish_child(self, job: PointSpec, record: dict[str, Any]) -> None:
        self.runs.tag_child(job.id, "protocol", record["protocol"])
        samples = [self.store.fetch(job, SAMPLES_FILE)]
        self.runs.finish_child(job.id, record["metrics"], record["history"], samples)

    def failed(self, job: JobSpec, reason: str) -> None:
        self.reasons[job.id] = reason
        self.view.failed(job, reason)
        if isinstance(job, PointSpec):
            self.runs.fail_child(job.id, reason)

    def _results(self) -> Results:
        return [(point, record) for point in self.plan.points if (record := self.store.read_record(point))]

    def _record_finished(self) -> None:
        """Give every finished point its finished child run: also those of earlier sweeps, or computed while MLflow was away."""
        for trial, record in self._results():
            if not self.runs.is_finished(trial.id):
                self._start_child(trial)
                self._finish_child(trial, record)

    def _report(self) -> int:
        results = self._results()
        failures = [job for job in self.plan.jobs if self.store.read_record(job) is None]
        if results:
            self._write_report(results)
        for job in failures:
            reason = self.reasons.get(job.id, "not computed")
            self.console.print(f"failed: {self._label(job)}: {reason}", style="red", markup=False, highlight=False)
        summary = {"points_done": len(results), "points_failed": len(self.plan.points) - len(results)}
        summary |= {f"timing/{name}_s": value for name, value in self.timings.items()}
        self.runs.close("FAILED" if failures else "FINISHED", summary)
        if failures:
            self.console.print("Run the same command again to retry what failed.")
        return 1 if failures else 0

    def _write_report(self, results: Results) -> None:
        files = self._write_fronts(results)
        if schedules := used_schedules(self.plan.transfer):
            files.append(draw_schedules(schedules, self.report_folder / "schedules.png"))
        finished_curves = [(job, record) for job in self.plan.curve if (record := self.store.read_record(job))]
        if curves := curve_rows(finished_curves, self.names):
            show_curves(self.console, curves)
            files.append(write_csv(curves, self.report_folder / "forgetting.csv"))
            files.append(draw_curves(curves, self.report_folder / "forgetting.png"))
        decomposed = [(job, record) for job in self.plan.decompose if (record := self.store.read_record(job))]
        for job, record in decomposed:
            rows = decomposition_rows(job, record)
            show_decomposition(self.console, rows, record["metrics"], record["protocol"])
            files.append(write_csv(rows, self.report_folder / "decomposition.csv"))
        ledger = ledger_rows(results, self.store, self.names)
        files.append(write_csv(ledger, self.report_folder / "ledger.csv"))
        show_ledger(self.console, ledger_totals(ledger))
        self.runs.log_files(files)
        self.runs.log_files(self._copy_samples(results), "samples")
        self._show_where(files)

    def _write_fronts(self, results: Results) -> list[Path]:
        """Print and draw the front of every protocol: scores of different protocols never share a table or a plot."""
        self.report_folder.mkdir(parents=True, exist_ok=True)
        groups = by_protocol(points_from(results, self.names))
        files: list[Path] = []
        for points, suffix in zip(groups.values(), self._suffixes(list(groups.values())), strict=True):
            rows = report_rows(points)
            title = f"Size against FID on {short_name(points[0].dataset)}"
            files.append(write_csv(rows, self.report_folder / f"pareto{suffix}.csv"))
            files.append(draw_front(rows, self.report_folder / f"pareto{suffix}.png", title=title))
            files.append(interactive_front(rows, self.report_folder / f"pareto{suffix}.html", title=title))
            self._tag_front(rows)
            show_front(self.console, rows)
            self.console.print(f"protocol: {rows[0]['protocol']}", highlight=False)
        return files

    def _suffixes(self, groups: list[list[Point]]) -> list[str]:
        """What tells the files of several protocols apart: the target's name, and a number where that is not enough."""
        suffixes: list[str] = []
        for points in groups:
            base = any(point.transfer == "none" for point in points)
            suffix = "" if base else f"-{short_name(points[0].dataset)}"
            suffixes.append(f"{suffix}-{len(suffixes) + 1}" if suffix in suffixes else suffix)
        return suffixes

    def _copy_samples(self, results: Results) -> list[Path]:
        """The points' pictures side by side, under readable names."""
        folder = self.report_folder / "samples"
        folder.mkdir(exist_ok=True)
        named = {self._label(trial).translate(PLAIN): self.store.fetch(trial, SAMPLES_FILE) for trial, _ in results}
        return [Path(shutil.copyfile(path, folder / f"{name}.png")) for name, path in named.items()]

    def _tag_front(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            for trial_id in row["trial_ids"].split():
                self.runs.tag_child(trial_id, "pareto", str(row["front_params_total"]).lower())

    def _show_where(self, files: list[Path]) -> None:
        for file in files:
            if file.suffix in (".png", ".html"):
                self.console.print(str(file), soft_wrap=True, highlight=False)
        if self.tracking.uri.startswith("http"):
            server = self.tracking.uri.rstrip("/")
        else:
            server = f"http://127.0.0.1:{MLFLOW_PORT}"
            executable = shlex.quote(executable_path("mlflow"))
            command = f"{executable} ui --port {MLFLOW_PORT} --backend-store-uri {shlex.quote(self.tracking.uri)}"
            self.console.print(f"Compare the runs:  {command}", soft_wrap=True, highlight=False)
        for dataset in self._datasets():
            view = self._save_view(dataset)
            if view is not None:
                self.console.print(f"then open          {server}{view}", soft_wrap=True, highlight=False)

    def _datasets(self) -> list[str]:
        """Those that its points are scored on."""
        return list(dict.fromkeys(point.dataset for point in self.plan.points))

    def _save_view(self, dataset: str) -> str | None:
        ids = self.plan.sweep_id, self.runs.parent_id
        return self.runs.attempt(lambda: save_chart_view(self.tracking, *ids, dataset, short_name(dataset)))


def executable_path(name: str) -> str:
    """A command of this Python, which need not be on the PATH."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name
