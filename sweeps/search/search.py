"""A schedule search in progress: what comes before its studies, the studies under one Ray Tune stage, and their report."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import optuna

from sweeps.display.numbers import counted
from sweeps.display.progress import ProgressView
from sweeps.execution.errors import StoppedSweep, without_password
from sweeps.execution.sweep import Sweep, executable_path
from sweeps.planning.names import MethodNames
from sweeps.results.pareto import Results
from sweeps.search.planning import SearchPlan, trial_core_s
from sweeps.search.report import BEST_FILE, SearchReport
from sweeps.search.study import ScheduleStudy, Studies
from trainables.specs.base import JobSpec
from trainables.specs.transfers import RungSpec, TransferSpec

STAGE = "search"
NO_TRIAL = -1  # in place of a trial's number: the study could not be started


def _trial_key(index: int) -> str:
    """The name of a trial's share in the progress."""
    return f"trial {index}"


class ScheduleSearch(Sweep):
    """A sweep whose last stage asks Optuna for its jobs. Raises StudyError if the study storage cannot be used."""

    def __init__(
        self,
        name: str,
        plan: SearchPlan,
        params: dict[str, Any],
        *,
        study_storage: str,
        grid_options: Sequence[str],
        **surroundings: Any,
    ) -> None:
        super().__init__(name, plan, params, **surroundings)
        self.study_storage, self.grid_options = study_storage, grid_options
        self.studies = [ScheduleStudy(spec, self.store, study_storage) for spec in plan.studies]
        self.view: ProgressView | None = None
        self.num_ended = self._count_ended()

    def run(self) -> int:
        try:
            return super().run()
        except optuna.exceptions.StorageInternalError as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise StoppedSweep(f"the study storage does not answer any more ({reason})") from error

    def _is_unfinished(self, missing: dict[str, tuple[JobSpec, ...]]) -> bool:
        return not all(study.is_exhausted() for study in self.studies)

    def _needs(self, missing: dict[str, tuple[JobSpec, ...]]) -> Iterable[JobSpec]:
        """Everything planned: trials are made from it."""
        return self.plan.jobs

    def _what_for(self, num_missing: int) -> str:
        first = f" for {num_missing} and" if num_missing else " for"
        return f"{first} the search"

    def _run_stages(self, missing: dict[str, tuple[JobSpec, ...]]) -> None:
        super()._run_stages(missing)
        self.source = Studies([study for study in self.studies if self._can_start(study)])
        self.num_ended = self._count_ended()
        left = [max(0, study.spec.num_trials - len(study.finished_trials)) for study in self.source.studies]
        costs = [
            trial_core_s(study.spec) for study, number in zip(self.source.studies, left, strict=True) for _ in range(number)
        ]
        self.view.costs |= {_trial_key(self.num_ended + i): cost for i, cost in enumerate(costs)}
        self._run_stage(STAGE, self.source, counted(sum(left), "trial"), sum(left))

    def _can_start(self, study: ScheduleStudy) -> bool:
        """Whether the base models and banks that its points may ask for are there; else it fails with their names."""
        shared = (*self.plan.source, *self.plan.decompose)
        for job in (*shared, *self.plan.base, *self.plan.bank):
            if job.id in self.reasons and (job in shared or job.model.size.name in study.spec.sizes):
                study.broken[NO_TRIAL] = f"needs the {self._label(job)}, which failed: {self.reasons[job.id]}"
                return False
        return True

    def _label(self, job: JobSpec) -> str:
        study = self._study_of(job)
        if study is None:
            return super()._label(job)
        suffix = f" to step {job.step}" if isinstance(job, RungSpec) else ""
        return study.labels[job.run_id] + suffix

    def _study_of(self, job: JobSpec) -> ScheduleStudy | None:
        return next((study for study in self.studies if job.run_id in study.labels), None)

    # The listener's side. A rung is a stretch of its transfer's child run.

    def started(self, job: JobSpec) -> None:
        self.view.started(job)
        if isinstance(job, RungSpec | TransferSpec):
            self._start_child(job.transfer if isinstance(job, RungSpec) else job)

    def reported(self, job: JobSpec, metrics: dict[str, Any]) -> None:
        self.view.reported(job, metrics)
        if isinstance(job, RungSpec | TransferSpec):
            self.runs.log_history(job.run_id, metrics["history"])

    def finished(self, job: JobSpec) -> None:
        study = self._study_of(job)
        if study is None:
            self.view.finished(job, self.store.read_record(job))
            return
        outcome = study.finished(job)
        record = self.store.read_record(job)
        self.view.finished(job, record, note=f", {outcome}" if outcome else "", advance=self._newly_ended())
        if isinstance(job, RungSpec):
            self._log_rung(job, record)
            if outcome:
                self.runs.stop_child(job.run_id, outcome)
        else:
            self._finish_child(job, record)

    def failed(self, job: JobSpec, reason: str) -> None:
        self.reasons[job.id] = reason
        study = self._study_of(job)
        if study is None:
            self.view.failed(job, reason)
            return
        study.failed(job, reason)
        self.runs.fail_child(job.run_id, reason)
        self.view.failed(job, reason, advance=self._newly_ended())

    def _count_ended(self) -> int:
        return sum(len(study.finished_trials) for study in self.studies)

    def _newly_ended(self) -> int:
        """How many trials have ended since the last call: none at a rung that is passed, several of one point."""
        before, self.num_ended = self.num_ended, self._count_ended()
        self.view.done_share |= {_trial_key(i): 1.0 for i in range(before, self.num_ended)}
        return self.num_ended - before

    # The report.

    def _datasets(self) -> list[str]:
        return list(dict.fromkeys(study.spec.grid.transfer.target for study in self.studies))

    def _results(self) -> Results:
        transfers = {transfer.id: transfer for study in self.studies for transfer in study.scored()}
        return [(transfer, self.store.read_record(transfer)) for transfer in transfers.values()]

    def _show_next_steps(self, report: SearchReport) -> None:
        """How the result is used, and where else the studies can be looked at."""
        lines = []
        waiting = sum(study.num_waiting for study in self.studies)
        if waiting:
            lines.append(f"{waiting} known points were not tried, for there were no trials left; raise --trials")
        if report.best:
            command = ["python", "sweeps/size_grid.py", *self.grid_options]
            command += ["--schedules", f"linear,@{self.report_folder / BEST_FILE}"]
            lines.append(f"Use it in a grid:  {shlex.join(command)}")
        dashboard = shlex.join([executable_path("optuna-dashboard"), without_password(self.study_storage)])
        lines.append(f"Look at the study: {dashboard}  (of the extra: pip install -e '.[dashboard]')")
        for line in lines:
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _record_finished(self) -> None:
        """Also those that were stopped early, while MLflow was away or just before this process was killed."""
        super()._record_finished()
        for study in self.studies:
            for transfer, outcome in study.stopped():
                if not self.runs.is_stopped(transfer.id):
                    self._start_child(transfer)
                    for rung in study.rungs(transfer):
                        if (record := self.store.read_record(rung)) is not None:
                            self._log_rung(rung, record)
                    self.runs.stop_child(transfer.id, outcome)

    def _log_rung(self, rung: RungSpec, record: dict[str, Any]) -> None:
        self.runs.log_history(rung.run_id, record["history"])
        self.runs.log_metrics(rung.run_id, {"proxy/fid": record["metrics"]["fid"]}, step=rung.step)

    def _report(self) -> int:
        report = SearchReport(self.studies, self.store, self.report_folder, self.console)
        files = report.write()
        self.names = MethodNames([job for job, _ in report.compared], tuned=report.best_ids)
        if report.compared:
            files += self._write_fronts(report.compared)
        self.runs.log_files(files)
        self._show_where(files)
        self._show_next_steps(report)
        broken = [(study, number, reason) for study in self.studies for number, reason in study.broken.items()]
        for study, number, reason in broken:
            name = study.spec.label if number == NO_TRIAL else f"{study.spec.label} trial {number}"
            self.console.print(f"failed: {name}: {reason}", style="red", markup=False, highlight=False)
        summary = report.summary() | {f"timing/{name}_s": value for name, value in self.timings.items()}
        failed = bool(broken) or not report.best
        self.runs.close("FAILED" if failed else "FINISHED", summary)
        if broken:
            self.console.print("Run the same command again to retry what failed.")
        return 1 if failed else 0
