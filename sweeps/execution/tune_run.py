"""Run tasks as Ray Tune trials: inside the trial's process, which all kinds of jobs reuse, or on a Ray Train worker group."""

from __future__ import annotations

import pickle
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
import torch
from pyarrow import fs
from ray import tune
from ray.tune.search import ConcurrencyLimiter, Searcher

from sweeps.execution.cluster import is_joined
from sweeps.execution.errors import StoppedSweep
from sweeps.execution.ray_environment import WAITING_TRIALS
from sweeps.execution.runner import RunnerSpec, cluster_slots, trials_that_fit
from trainables.failures import Failure, FailureKind, failure_of, failure_of_text, last_line
from trainables.jobs.kind import Workers
from trainables.jobs.registry import kind_of
from trainables.jobs.run import run_task
from trainables.specs.base import JobSpec
from trainables.specs.tasks import Task
from trainables.storage.store import CHECKPOINT_FOLDER, Store, checkpoint_folder_name
from trainables.training.computing import Computing
from trainables.training.context import RunContext, first_gpu

MAX_RETRIES = 3  # of a trial that died or failed, unless it diverged or its input is bad: then it would fail again
WAITING_GROUPS = 4  # at most: each has a gigabyte of processes on the head
MEASURE_EVERY_S = 5.0
ENDS_OF_TUNE = (RuntimeError, OSError, EOFError, pickle.UnpicklingError, tune.TuneError)  # also of files cut off by a full disk


class TaskSource(Protocol):
    """Where tasks come from; asked in the sweep's own process whenever a worker is free.

    `hands_out_ahead`: true if the next tasks do not depend on the results of the running tasks.
    """

    hands_out_ahead: bool

    def next_task(self) -> Task | None:
        """None if there is nothing to start before a running job has ended, or nothing any more."""

    def is_exhausted(self) -> bool:
        """Whether there will be no further job, whatever the running ones give."""

    def workers_wanted(self, task: Task, slots: int) -> int:
        """Workers, at most `slots`, that a task needs so as not to hold up the sweep, if the task can use all of them."""


class TaskListener(Protocol):
    """Hears of every task, in the sweep's own process."""

    def started(self, task: Task) -> None: ...
    def reported(self, task: Task, metrics: dict[str, Any]) -> None: ...
    def finished(self, task: Task) -> None: ...
    def failed(self, task: Task, failure: Failure) -> None: ...


def trials_at_once(runner: RunnerSpec, source: TaskSource) -> int:
    """Number of trials that run or wait for resources. On a joined cluster, waiting trials make the cluster grow.

    A waiting inline trial of a grid costs nothing, so WAITING_TRIALS may wait. Each waiting worker group holds a process,
    so at most WAITING_GROUPS wait. A study lets one trial wait, because later proposals know more results.
    """
    if runner.max_concurrent is not None:
        return runner.max_concurrent
    fit = trials_that_fit(runner)
    if not is_joined():
        return fit
    if not source.hands_out_ahead:
        return fit + 1
    return fit + (min(fit, WAITING_GROUPS) if runner.groups_trials else WAITING_TRIALS)


class InlineContext(RunContext):
    """One worker inside the Tune trial's own process."""

    def __init__(self, store: Store, job: JobSpec, computing: Computing, *, gpus: float = 0.0) -> None:
        self.store, self.job, self.computing = store, job, computing
        if gpus:
            self.gpu_share = min(1.0, gpus)
            self.device = first_gpu(self.gpu_share)

    @contextmanager
    def restore(self):
        # Found in the store and not through Tune, so that a sweep submitted again resumes just as a retried trial does.
        latest = self.store.latest_checkpoint(self.job)
        if latest is None:
            yield None
            return
        with tempfile.TemporaryDirectory() as folder:
            fs.copy_files(latest, folder, self.store.filesystem, fs.LocalFileSystem())
            yield Path(folder)

    def report(self, metrics: dict[str, Any], checkpoint: Path | None) -> None:
        tune.report(metrics, checkpoint=None if checkpoint is None else tune.Checkpoint.from_directory(checkpoint))


@dataclass(frozen=True, kw_only=True)
class _TrialSetup:
    """What a Tune trial is told of its task; `group_size` 0 runs it inline."""

    task: Task
    group_size: int
    gpus_per_worker: float
    cpus_per_worker: int = 1
    store_location: str
    checkpoint_every_steps: int
    computing: Computing = Computing()

    @property
    def resources(self) -> tune.PlacementGroupFactory:
        # The driver of a worker group takes no CPU: its workers are outside Tune's accounting and would wait for it for ever.
        driver = {"node:__internal_head__": 0.001}
        gpus = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return tune.PlacementGroupFactory([driver if self.group_size else {"CPU": self.cpus_per_worker, **gpus}])


class _JobSearcher(Searcher):
    """Hands a source's jobs to Tune as trials."""

    def __init__(self, source: TaskSource, runner: RunnerSpec, store: Store, slots: int) -> None:
        super().__init__()
        self.source, self.runner, self.store, self.slots = source, runner, store, slots

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes it beside the checkpoints, where a study storage's password does not belong

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        task = self.source.next_task()
        if task is None:
            return Searcher.FINISHED if self.source.is_exhausted() else None
        wanted = self.source.workers_wanted(task, self.slots) if kind_of(task.job).workers is Workers.ALL else 1
        num_workers = self.runner.workers_for(task.job, wanted)
        setup = _TrialSetup(
            task=task,
            group_size=num_workers if self.runner.uses_worker_group(task.job, num_workers) else 0,
            gpus_per_worker=self.runner.gpus_per_worker,
            cpus_per_worker=self.runner.cpus_per_worker,
            store_location=self.store.location,
            checkpoint_every_steps=self.runner.checkpoint_every_steps,
            computing=self.runner.computing,
        )
        return {"setup": setup}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Sources hear of their jobs through the listener, with the reason of a failure."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()  # for Tuner.restore, which sweeps do not use


def _trial(config: dict[str, Any]) -> None:
    """A Tune trial: one task."""
    setup = config["setup"]
    task, store, every = setup.task, Store(setup.store_location), setup.checkpoint_every_steps
    if not setup.group_size:
        torch.set_num_threads(setup.cpus_per_worker)
        try:
            context = InlineContext(store, task.job, setup.computing, gpus=setup.gpus_per_worker)
            run_task(task, store.location, context, checkpoint_every_steps=every)
        except Exception as error:
            failure = failure_of(error, task.id, store)
            if failure.kind.is_retried:
                raise
            tune.report({"failure": failure.to_json()})
        return
    from ray.tune.integration.ray_train import TuneReportCallback

    from trainables.worker import WorkerGroupFailed, WorkerGroupSpec, run_on_worker_group

    try:
        run_on_worker_group(
            task,
            store,
            WorkerGroupSpec(
                num_workers=setup.group_size,
                gpus=setup.gpus_per_worker,
                cpus=setup.cpus_per_worker,
                computing=setup.computing,
            ),
            checkpoint_every_steps=every,
            callbacks=[TuneReportCallback()],
            max_failures=MAX_RETRIES,
        )
    except WorkerGroupFailed as error:
        tune.report({"failure": failure_of_text(str(error), task.id, store).to_json()})


class _GrowingLimiter(tune.Callback):
    """Lets more trials in as the cluster grows."""

    def __init__(self, limiter: ConcurrencyLimiter, measure: Callable[[], int]) -> None:
        self.limiter, self.measure = limiter, measure
        self.measured_s = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as for _TuneEvents

    def on_step_begin(self, iteration, trials, **info) -> None:
        if time.monotonic() - self.measured_s > MEASURE_EVERY_S:
            self.limiter.max_concurrent, self.measured_s = self.measure(), time.monotonic()


class _TuneEvents(tune.Callback):
    """Translates Tune's callbacks for the listener, and clears up after finished jobs."""

    def __init__(self, listener: TaskListener, store: Store) -> None:
        self.listener, self.store = listener, store
        self.all_done = True
        self.failures: dict[str, str] = {}

    @staticmethod
    def _task(trial) -> Task:
        return trial.config["setup"].task

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for Tuner.restore, which sweeps do not use; a listener cannot be pickled

    def on_trial_start(self, iteration, trials, trial, **info) -> None:
        self.listener.started(self._task(trial))

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        task = self._task(trial)
        if "failure" in result:
            self.failures[task.id] = Failure.from_json(result["failure"])
        if "history" in result:
            self.listener.reported(task, result)

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        task = self._task(trial)
        if any(self.store.read_record(job) is None for job in task.jobs):
            self.all_done = False
            ended = Failure(kind=FailureKind.DIED, reason="ended without a result")
            self.listener.failed(task, self.failures.get(task.id, ended))
            return
        if task.job.run_id == task.id:  # else the training goes on in another job
            self.store.delete_checkpoints(task.job)
        self.listener.finished(task)

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        self.all_done = False
        # Tune's local file: the copy in the storage may come later.
        text = Path(trial.error_file).read_text() if trial.error_file else ""
        task = self._task(trial)
        self.listener.failed(task, failure_of_text(text, task.id, self.store))


def run_tasks(name: str, source: TaskSource, store: Store, runner: RunnerSpec, listener: TaskListener) -> None:
    """Run a source's tasks until it has no more; checkpoints of finished jobs are deleted.

    What is interrupted leaves its checkpoints: the same jobs run again go on from them.
    """
    slots = max(1, cluster_slots(runner))
    attempt = f"{name}-{uuid.uuid4().hex[:8]}"  # a folder of its own: Ray would write over an older attempt's checkpoints
    events = _TuneEvents(listener, store)
    limiter = ConcurrencyLimiter(_JobSearcher(source, runner, store, slots), max_concurrent=trials_at_once(runner, source))
    tuner = tune.Tuner(
        tune.with_resources(_trial, lambda config: config["setup"].resources),
        tune_config=tune.TuneConfig(
            search_alg=limiter,
            num_samples=-1,  # as many as the source has
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["setup"].task.id,
            trial_dirname_creator=lambda trial: checkpoint_folder_name(trial.config["setup"].task.job),
        ),
        run_config=tune.RunConfig(
            name=attempt,
            storage_path=f"{store.root}/{CHECKPOINT_FOLDER}",
            storage_filesystem=store.filesystem,
            failure_config=tune.FailureConfig(max_failures=MAX_RETRIES),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[events, _GrowingLimiter(limiter, lambda: trials_at_once(runner, source))],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except StoppedSweep:
        raise
    except (*ENDS_OF_TUNE, ray.exceptions.RayError) as error:
        raise StoppedSweep(f"Ray ended the sweep {name}: {last_line(str(error))}") from error
    if events.all_done:
        store.delete(f"{CHECKPOINT_FOLDER}/{attempt}")
