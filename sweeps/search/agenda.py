"""What a schedule search works through: what comes before its studies, and the studies as the last stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sweeps.display.numbers import counted
from sweeps.execution.agenda import Heard, LastStage
from sweeps.results.points import PointResult, Results, point_result
from sweeps.search.planning import SearchPlan, trial_core_s
from sweeps.search.study import ScheduleStudy, Studies
from trainables.failures import Failure
from trainables.specs.base import JobSpec
from trainables.specs.models import PointSpec
from trainables.specs.tasks import Task
from trainables.storage.store import Store

STAGE = "search"
NO_TRIAL = -1  # in place of a trial's number: the study could not be started


class SearchAgenda:
    """Open studies. Raises StudyError if the study storage cannot be used."""

    def __init__(self, plan: SearchPlan, store: Store, study_storage: str) -> None:
        self.plan, self.store, self.labels = plan, store, plan.labels
        self.studies = [ScheduleStudy(spec, store, study_storage) for spec in plan.studies]
        self.num_ended = self._count_ended()

    def is_done(self, missing: Sequence[Task]) -> bool:
        return all(study.is_exhausted() for study in self.studies)

    def needs(self, missing: Sequence[Task]) -> Iterable[JobSpec]:
        """Everything planned: trials are made from it."""
        return self.plan.jobs

    def what_for(self, num_missing: int) -> str:
        first = f" for {num_missing} and" if num_missing else " for"
        return f"{first} the search"

    def label(self, job: JobSpec) -> str:
        study = self._study_of(job)
        if study is None:
            return self.labels.get(job.id, job.label)
        rung = getattr(job, "rung", None)
        return study.labels[job.run_id] + ("" if rung is None else f" to step {rung.step}")

    def _study_of(self, job: JobSpec) -> ScheduleStudy | None:
        return next((study for study in self.studies if job.run_id in study.labels), None)

    def last_stage(self, failures: Mapping[str, Failure]) -> LastStage:
        source = Studies([study for study in self.studies if self._can_start(study, failures)])
        self.num_ended = self._count_ended()
        left = [max(0, study.spec.num_trials - len(study.finished_trials)) for study in source.studies]
        costs = [trial_core_s(study.spec) for study, number in zip(source.studies, left, strict=True) for _ in range(number)]
        by_trial = {_trial_key(self.num_ended + i): cost for i, cost in enumerate(costs)}
        return LastStage(name=STAGE, source=source, what=counted(sum(left), "trial"), costs=by_trial)

    def _can_start(self, study: ScheduleStudy, failures: Mapping[str, Failure]) -> bool:
        """Whether the base models and banks that its points may ask for are there; else it fails with their names."""
        shared = {task.id for task in (*self.plan.source, *self.plan.decompose, *self.plan.learngene)}
        for task in self.plan.tasks:
            of_its_size = task.id in shared or getattr(task.job, "model", None).size.name in study.spec.sizes
            if task.id in failures and of_its_size:
                study.broken[NO_TRIAL] = f"needs the {self.label(task.job)}, which failed: {failures[task.id]}"
                return False
        return True

    def model_of(self, task: Task) -> PointSpec | None:
        study = self._study_of(task.job)
        return None if study is None else study.transfers[task.job.run_id]

    def result_of(self, task: Task) -> PointResult | None:
        study = self._study_of(task.job)
        return None if study is None else point_result(study.spec.point(study.transfers[task.job.run_id]), self.store)

    def finished(self, task: Task) -> Heard:
        study = self._study_of(task.job)
        if study is None:
            return Heard()
        outcome = study.finished(task)
        ended = self._newly_ended()
        return Heard(note=f", {outcome}" if outcome else "", advance=len(ended), ended=ended, stopped=outcome)

    def failed(self, task: Task, failure: Failure) -> Heard:
        study = self._study_of(task.job)
        if study is None:
            return Heard()
        study.failed(task, failure)
        ended = self._newly_ended()
        return Heard(advance=len(ended), ended=ended)

    def _count_ended(self) -> int:
        return sum(len(study.finished_trials) for study in self.studies)

    def _newly_ended(self) -> tuple[str, ...]:
        """Trials that ended since the last call: none when a rung was passed; several when they shared a point."""
        before, self.num_ended = self.num_ended, self._count_ended()
        return tuple(_trial_key(index) for index in range(before, self.num_ended))

    def results(self) -> Results:
        points = {t.id: study.spec.point(t) for study in self.studies for t in study.scored()}
        return [result for point in points.values() if (result := point_result(point, self.store))]


def _trial_key(index: int) -> str:
    """The name of a trial's share in the progress."""
    return f"trial {index}"
