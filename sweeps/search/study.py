"""Optuna studies of transfer settings: which point is tried next, how far it is trained, and what it scored.

A study lives in its storage and the scores in the store; a study opened again goes on where it was. Trials that were running
are carried on under their own numbers, so that none is lost and none is counted twice.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace

import optuna
from optuna.trial import FrozenTrial, TrialState

from fine_core.evaluation.protocol import EvaluationSpec
from fine_core.randomness import stream_seed
from fine_core.text import without_password
from mlflow_setup.tracking import table_names
from sweeps.planning.grid import GridSpec
from sweeps.planning.points import PlannedPoint
from sweeps.results.points import PointResult, point_result
from sweeps.search.objectives import OBJECTIVES
from sweeps.search.space import SearchSpace
from trainables.failures import Failure, FailureKind
from trainables.specs.base import JobSpec, check
from trainables.specs.identity import content_of
from trainables.specs.options import Point
from trainables.specs.scores import ScoreSpec
from trainables.specs.tasks import Task
from trainables.specs.transfers import RungSpec, TransferSpec
from trainables.storage.store import Store

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

SAMPLERS = ("auto", "tpe", "gp", "nsga2", "random")
NSGA2_FROM_TRIALS = 1000  # below it TPE learns faster
DEFINITION = "definition"  # Optuna user attributes
OUTCOME = "outcome"
STOPPED = "stopped"  # how the outcome of a trial begins that was given up at a rung
PASSED = "passed_step"  # the last rung from which a trial went on


@dataclass(frozen=True, kw_only=True)
class HalvingSpec:
    """Successive halving (Li et al., arXiv 1810.05934): at every rung the best 1 / `reduction_factor` so far go on.

    `rungs` are training steps; the scores there are by `evaluation`, the proxy protocol.
    """

    rungs: tuple[int, ...]
    reduction_factor: int
    evaluation: EvaluationSpec

    def pruner(self) -> optuna.pruners.BasePruner:
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=self.rungs[0], reduction_factor=self.reduction_factor)


def rungs_of(steps: int, reduction_factor: int) -> tuple[int, ...]:
    """The two rungs below `steps`, each `reduction_factor` times the one before; fewer where the steps do not suffice."""
    first = max(steps // reduction_factor**2, min(1, steps // reduction_factor))
    return tuple(rung for rung in (first, first * reduction_factor) if rung > 0 and rung * reduction_factor <= steps)


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """One study: a space over the settings of one method, at one size or over several.

    `sizes`: name -> (depth, width). `known`: points that are tried first. `limits`: largest values of metrics of a transfer.
    """

    name: str
    method: str
    initialization: str
    sizes: dict[str, tuple[int, int]]
    space: SearchSpace
    objectives: tuple[str, ...]
    num_trials: int
    sampler: str
    seed: int
    grid: GridSpec
    known: tuple[Point, ...]
    halving: HalvingSpec | None = None
    limits: dict[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Method and sizes, as names of studies have them."""
        sizes = list(self.sizes)
        return f"{self.method} {sizes[0] if len(sizes) == 1 else f'{sizes[0]} to {sizes[-1]}'}"

    @property
    def label(self) -> str:
        return self.named(self.title)

    def named(self, text: str) -> str:
        """A text with the initialization of the base models, if it is not the usual one."""
        return text + ("" if self.initialization == "fine" else f" from {self.initialization}")

    def transfer(self, point: Point) -> TransferSpec:
        """The transfer that a point stands for."""
        settings = self.space.settings(point)
        depth, width = self.sizes[point.get("size", next(iter(self.sizes)))]
        where = {"start": self.initialization, "seed": self.grid.seeds[0]}
        return self.grid.transferred(self.method, settings, depth=depth, width=width, **where)

    def point(self, transfer: TransferSpec) -> PlannedPoint:
        """A transfer with its scores; what it forgets is scored only where that is an objective."""
        point = self.grid.point(transfer)
        return point if "forgetting" in self.objectives else PlannedPoint(model=transfer, score=point.score)

    def default_transfer(self, size: str) -> TransferSpec:
        """What the grid would do at a size without a search."""
        return self.transfer(self.space.point(self.space.default_at(size), size))

    def _default_jobs(self, size: str) -> tuple[JobSpec, ...]:
        point = self.point(self.default_transfer(size))
        return (point.model, *point.scores)

    @property
    def definition(self) -> str:
        """Equal for studies that may share their trials, whatever their number of trials, sampler and known points."""
        content = {
            "space": self.space.description(),
            "objectives": self.objectives,
            "limits": self.limits,
            "halving": None if self.halving is None else content_of(self.halving),
            "defaults": {size: [job.id for job in self._default_jobs(size)] for size in self.sizes},
        }
        return json.dumps(content, sort_keys=True)


def study_digest(spec: StudySpec) -> str:
    """A short hash that tells studies apart that must not be mixed: by definition, sampler and seed."""
    return hashlib.sha256(f"{spec.definition} {spec.sampler} {spec.seed}".encode()).hexdigest()[:8]


def make_sampler(spec: StudySpec, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of trial `number`. Its seed depends on the number, so that a study opened again does not repeat itself."""
    seed = stream_seed(spec.seed, f"search-{number}") % 2**32
    match chosen_sampler(spec):
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed)
        case "gp":
            return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed)
        case _:
            return optuna.samplers.RandomSampler(seed=seed)


def chosen_sampler(spec: StudySpec) -> str:
    """`auto`: NSGA-II for very many trials of several objectives; a Gaussian process where no parameter depends on another and
    no trial is stopped early, from which it would not learn; else TPE."""
    if spec.sampler != "auto":
        return spec.sampler
    if len(spec.objectives) > 1 and spec.num_trials >= NSGA2_FROM_TRIALS:
        return "nsga2"
    conditional = any(parameter.only_if for parameter in spec.space.parameters)
    return "tpe" if conditional or spec.halving is not None else "gp"


class StudyError(ValueError):
    """A study that cannot be opened, or that was made for something else."""


@dataclass(kw_only=True)
class _Running:
    """A transfer in progress and the trials that wait for it: a sampler may propose the same point twice."""

    transfer: TransferSpec
    trial: optuna.Trial
    others: list[optuna.Trial] = field(default_factory=list)


def _check_no_runs(storage: str) -> None:
    """Raises StudyError for MLflow's database: both keep their schema's version in a table of the same name."""
    names: list[str] = []
    with suppress(Exception):  # Optuna says what is wrong with a storage
        names = table_names(storage)
    if "experiments" in names:
        raise StudyError(f"study storage {without_password(storage)!r} holds MLflow's runs; name another --study-storage")


class ScheduleStudy:
    """One open study, as a source of tasks. Raises StudyError if the storage cannot be used or holds another study."""

    def __init__(self, spec: StudySpec, store: Store, storage: str) -> None:
        self.spec, self.store = spec, store
        self.study = self._open(storage)
        self.labels: dict[str, str] = {}  # id of a transfer -> the trial that it belongs to, for people
        self.transfers: dict[str, TransferSpec] = {}  # by id: all that this process has started
        self.ready: deque[Task] = deque()
        self.running: dict[str, _Running] = {}
        self.broken: dict[int, str] = {}  # trials that failed for another reason than their point; tried again next time
        self.exempt = {spec.default_transfer(size).id for size in spec.sizes}  # compared with, so never stopped early
        for point in spec.known:
            self.study.enqueue_trial(point, skip_if_exists=True)
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.sampler = make_sampler(spec, frozen.number)
            self._start(optuna.Trial(self.study, frozen._trial_id))

    def _open(self, storage: str) -> optuna.Study:
        spec = self.spec
        _check_no_runs(storage)
        try:
            study = optuna.create_study(
                storage=storage,
                study_name=spec.name,
                directions=[OBJECTIVES[name].direction for name in spec.objectives],
                pruner=optuna.pruners.NopPruner() if spec.halving is None else spec.halving.pruner(),
                load_if_exists=True,
            )
        except Exception as error:  # every driver of every database has its own
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            text = f"study storage {storage!r} cannot be used ({reason}); use sqlite:///PATH.db"
            raise StudyError(without_password(text)) from error
        known = study.user_attrs.get(DEFINITION)
        if known is None:
            check(not study.trials, f"study {spec.name!r} was not made by schedule_search.py; take another --study")
            study.set_user_attr(DEFINITION, spec.definition)
            study.set_metric_names(list(spec.objectives))  # as optuna-dashboard shows them
        elif known != spec.definition:
            raise StudyError(
                f"study {spec.name!r} exists with another {_difference(known, spec.definition)}; "
                "take another --study, or the options that it was made with"
            )
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            check(
                point_result(spec.point(spec.transfer(trial.params)), self.store) is not None,
                f"study {spec.name!r} has scores that {self.store.location} does not hold; take another --study, "
                "or the --storage-path that it was made with",
            )
        return study

    # A source of tasks.

    def next_task(self) -> Task | None:
        while not self.ready and self.num_asked < self.spec.num_trials:
            self.study.sampler = make_sampler(self.spec, self.num_asked)
            self._start(self.study.ask())
        return self.ready.popleft() if self.ready else None

    def is_exhausted(self) -> bool:
        return not self.ready and not self.running and self.num_asked >= self.spec.num_trials

    @property
    def num_asked(self) -> int:
        return sum(t.state != TrialState.WAITING for t in self.study.get_trials(deepcopy=False))

    @property
    def finished_trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))

    def complete_trials(self) -> list[FrozenTrial]:
        return [trial for trial in self.finished_trials if trial.state == TrialState.COMPLETE]

    def scored(self) -> list[TransferSpec]:
        """The transfers that have a score of the full protocol."""
        return [self.spec.transfer(trial.params) for trial in self.complete_trials()]

    def stopped(self) -> list[tuple[TransferSpec, str]]:
        """The transfers that were given up at a rung, and at which. (One that diverged has failed, and is not among them.)"""
        ended = [(self.spec.transfer(trial.params), trial.user_attrs[OUTCOME]) for trial in self.finished_trials]
        return [(transfer, outcome) for transfer, outcome in ended if outcome.startswith(STOPPED)]

    def _start(self, trial: optuna.Trial) -> None:
        transfer = self.spec.transfer(self.spec.space.suggest(trial))  # a trial carried on keeps the values that it has
        trial.set_user_attr("transfer_id", transfer.id)
        trial.set_user_attr("size", transfer.size.name)
        self.transfers[transfer.id] = transfer
        self.labels.setdefault(
            transfer.id, self.spec.named(f"{transfer.size.name} trial {trial.number} {transfer.method_label}")
        )
        if transfer.id in self.running:
            self.running[transfer.id].others.append(trial)
            return
        self.running[transfer.id] = _Running(transfer=transfer, trial=trial)
        self._advance(transfer.id)

    def _advance(self, transfer_id: str) -> None:
        """Queue what a trial needs next, or tell Optuna how it ended."""
        running = self.running[transfer_id]
        transfer, trial = running.transfer, running.trial
        point = self.spec.point(transfer)
        if (result := point_result(point, self.store)) is not None:
            self._complete(running, result)
            return
        for rung in self.rungs(transfer):
            # Read anew: this may be a trial that was cut off anywhere between two of these lines.
            known = self._frozen(trial)
            step = rung.total_steps
            if known.user_attrs.get(PASSED, 0) >= step:
                continue
            if (record := self.store.read_record(rung)) is None:
                self.ready.append(Task(job=rung))
                return
            if step not in known.intermediate_values:
                trial.report(record.metrics["fid"], step)
            stops = trial.should_prune() and transfer.id not in self.exempt
            if stops or OUTCOME in known.user_attrs:
                self._end(running, TrialState.PRUNED, f"{STOPPED} at step {step}")
                return
            trial.set_user_attr(PASSED, step)
        if all(self.store.read_record(job) is not None for job in point.task.jobs):
            lost = Failure(kind=FailureKind.LOST_ARTIFACT, reason="the score of its base model on the source domain is gone")
            self.failed(point.task, lost)  # to queue the task again would change nothing
            return
        self.ready.append(point.task)

    def _frozen(self, trial: optuna.Trial) -> FrozenTrial:
        return trial.storage.get_trial(trial._trial_id)

    def rungs(self, transfer: TransferSpec) -> list[ScoreSpec]:
        """The scores by the proxy protocol at the steps where the trial may be stopped."""
        if self.spec.halving is None:
            return []
        full, evaluation = self.spec.point(transfer).score, self.spec.halving.evaluation
        rungs = [RungSpec(transfer=transfer, step=step) for step in self.spec.halving.rungs]
        return [replace(full, scored=rung, evaluation=evaluation) for rung in rungs]

    def _complete(self, running: _Running, result: PointResult) -> None:
        metrics = result.metrics
        missing = [name for name in self.spec.objectives if OBJECTIVES[name].result not in metrics]
        if missing:
            problem = f"this extractor and reference give no {', '.join(missing)}; leave it out of the objectives"
            self.failed(Task(job=running.transfer), Failure(kind=FailureKind.BAD_INPUT, reason=problem))
            return
        for trial in (running.trial, *running.others):
            for name, limit in self.spec.limits.items():
                trial.set_constraint(name, metrics[name] - limit)
            for name in ("fid", "serve_bytes", "params_total"):
                trial.set_user_attr(name, metrics[name])
        values = [metrics[OBJECTIVES[name].result] for name in self.spec.objectives]
        self._end(running, TrialState.COMPLETE, "scored", values)

    def _end(self, running: _Running, state: TrialState, outcome: str, values: list[float] | None = None) -> None:
        trials = (running.trial, *running.others)
        for trial in trials:
            trial.set_user_attr(OUTCOME, outcome)
        if state == TrialState.PRUNED:  # a transfer that was trained to its end has left none
            self.store.delete_checkpoints(running.transfer)
        for trial in trials:
            self.study.tell(trial, values, state=state, skip_if_finished=True)
        del self.running[running.transfer.id]

    # What became of its tasks.

    def finished(self, task: Task) -> str | None:
        """Take in the records of a task. Returns why its transfer was ended early, if it was.

        Heard again, it changes nothing: Tune runs a task again if a first hearing failed.
        """
        transfer_id = task.job.run_id
        if transfer_id not in self.running:
            return None
        trial = self.running[transfer_id].trial
        self._advance(transfer_id)
        ended = self._frozen(trial)
        return ended.user_attrs[OUTCOME] if ended.state == TrialState.PRUNED else None

    def failed(self, task: Task, failure: Failure) -> None:
        """A diverged training ends its trial. After any other failure, the same command tries the trial again."""
        running = self.running.get(task.job.run_id)
        if running is None:
            return
        if failure.kind is FailureKind.DIVERGED:
            self._end(running, TrialState.PRUNED, f"diverged: {failure.reason}")
            return
        for trial in (running.trial, *running.others):
            self.broken[trial.number] = str(failure)
        del self.running[task.job.run_id]

    @property
    def num_waiting(self) -> int:
        """Known points for which there was no trial left."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def _difference(known: str, wanted: str) -> str:
    """The parts in which two definitions differ."""
    before, after = json.loads(known), json.loads(wanted)
    names = {"space": "search space", "defaults": "task (model, target, training or scoring)", "halving": "early stopping"}
    return ", ".join(names.get(key, key) for key in after if before.get(key) != after[key])


class Studies:
    """Several studies as one source: what is promoted goes first, then the study that has tried least."""

    def __init__(self, studies: list[ScheduleStudy]) -> None:
        self.studies = studies

    def next_task(self) -> Task | None:
        for study in sorted(self.studies, key=lambda s: (not s.ready, s.num_asked)):
            if (task := study.next_task()) is not None:
                return task
        return None

    def is_exhausted(self) -> bool:
        return all(study.is_exhausted() for study in self.studies)
