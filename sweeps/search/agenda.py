"""What a schedule search works through: the tasks that its studies need, and the studies, each as soon as it has these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sweeps.execution.agenda import Heard
from sweeps.execution.graph import TaskGraph
from sweeps.planning.plan import plan_tasks
from sweeps.results.points import PointResult, Results, point_result
from sweeps.search.planning import SearchPlan, points_of_all_bases, trial_core_s
from sweeps.search.study import ScheduleStudy, Studies, StudySpec
from trainables.failures import Failure
from trainables.specs.base import JobSpec
from trainables.specs.models import PointSpec
from trainables.specs.tasks import Task
from trainables.storage.store import Store

NO_TRIAL = -1  # in place of a trial's number: the study could not be started


class SearchAgenda:
    """Open studies. Raises StudyError if the study storage cannot be used."""

    def __init__(self, plan: SearchPlan, store: Store, study_storage: str) -> None:
        self.plan, self.store, self.labels = plan, store, plan.labels
        self.studies = [ScheduleStudy(spec, store, study_storage) for spec in plan.studies]
        self.num_ended = self._count_ended()
        self.needed = {spec.name: self._needed_by(spec) for spec in plan.studies}

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

    def after_s(self) -> Mapping[str, float]:
        waiting: dict[str, float] = {}
        for study in self.studies:
            left_s = trial_core_s(study.spec) * self._num_left(study)
            waiting |= {id: max(waiting.get(id, 0.0), left_s) for id in self.needed[study.spec.name]}
        return waiting

    def further_costs(self) -> Mapping[str, float]:
        costs = [trial_core_s(study.spec) for study in self.studies for _ in range(self._num_left(study))]
        return {_trial_key(self.num_ended + i): cost for i, cost in enumerate(costs)}

    def _num_left(self, study: ScheduleStudy) -> int:
        return max(0, study.spec.num_trials - len(study.finished_trials))

    def _needed_by(self, study: StudySpec) -> set[str]:
        """Planned tasks that a study's points may ask for: those of its sizes, and what all sizes share."""
        tasks = [study.point(study.transfer(point)).task for point in points_of_all_bases(study)]
        return {task.id for task in plan_tasks(tasks)} & {task.id for task in self.plan.tasks}

    def source(self, graph: TaskGraph) -> GraphThenStudies:
        return GraphThenStudies(graph, [(study, self.needed[study.spec.name]) for study in self.studies])

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
            for other in self.studies:
                if task.id in self.needed[other.spec.name]:
                    other.broken[NO_TRIAL] = f"needs the {self.label(task.job)}, which failed: {failure}"
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


class GraphThenStudies:
    """Planned tasks first; beside them the tasks of each study that has all that it needs. A broken study has no more."""

    def __init__(self, graph: TaskGraph, needed: Sequence[tuple[ScheduleStudy, set[str]]]) -> None:
        self.graph, self.needed = graph, needed

    def _is_open(self, study: ScheduleStudy) -> bool:
        return NO_TRIAL not in study.broken

    @property
    def hands_out_ahead(self) -> bool:
        return not self.graph.is_exhausted()

    def next_task(self) -> Task | None:
        if (task := self.graph.next_task()) is not None:
            return task
        ready = [study for study, needed in self.needed if self._is_open(study) and not any(map(self.graph.is_open, needed))]
        return Studies(ready).next_task()

    def is_exhausted(self) -> bool:
        return self.graph.is_exhausted() and all(s.is_exhausted() for s, _ in self.needed if self._is_open(s))

    def workers_wanted(self, task: Task, slots: int) -> int:
        return self.graph.workers_wanted(task, slots)


def _trial_key(index: int) -> str:
    """The name of a trial's share in the progress."""
    return f"trial {index}"
