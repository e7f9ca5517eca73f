"""Where and how jobs run: inside Tune's processes or on Ray Train worker groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sweeps.execution.cluster import num_cpus, room
from trainables.jobs.kind import Workers
from trainables.jobs.registry import kind_of
from trainables.specs.base import JobSpec, check
from trainables.training.computing import Computing

RUNNERS = ("auto", "train", "tune")
MIN_IMAGES_PER_WORKER = 16  # of a learngene's batch: more workers would wait for each other more than they compute


@dataclass(frozen=True, kw_only=True)
class RunnerSpec:
    """Where and how jobs run. `auto` takes worker groups of Ray Train, which start in 25 s, for several workers alone."""

    runner: str = "auto"
    workers_per_trial: int = 1
    gpus_per_worker: float = 0.0
    cpus_per_worker: int = 1
    max_concurrent: int | None = None
    source_workers: int | None = None
    checkpoint_every_steps: int = 100
    computing: Computing = Computing()

    def __post_init__(self) -> None:
        check(self.runner in RUNNERS, f"unknown runner {self.runner!r}; choose one of {', '.join(RUNNERS)}")
        check(self.workers_per_trial >= 1, f"workers_per_trial is {self.workers_per_trial}; it must be at least 1")
        check(self.cpus_per_worker >= 1, f"cpus_per_worker is {self.cpus_per_worker}; it must be at least 1")
        check(self.gpus_per_worker >= 0, f"gpus_per_worker is {self.gpus_per_worker}; it must be 0 or more")
        check(self.max_concurrent is None or self.max_concurrent >= 1, "max_concurrent must be at least 1")
        check(self.source_workers is None or self.source_workers >= 1, "source_workers must be at least 1")
        check(self.checkpoint_every_steps >= 1, "checkpoint_every_steps must be at least 1")
        several = self.workers_per_trial > 1 or (self.source_workers or 1) > 1
        check(not (self.runner == "tune" and several), "runner 'tune' runs one worker per trial; use --runner train for more")
        shared_gpu = 0 < self.gpus_per_worker < 1
        check(not (shared_gpu and several), "workers that share a GPU cannot train together; use --gpus-per-worker 1")

    def check_this_machine(self) -> None:
        """Raises ValueError if a sweep without a cluster asks for more workers or GPUs than this machine has."""
        most = max(self.workers_per_trial, self.source_workers or 1)
        cpus, gpus, needed = num_cpus(), torch.cuda.device_count(), most * self.cpus_per_worker
        check(needed <= cpus, f"{most} workers need {needed} CPUs, this machine has {cpus}; use fewer, or join a Ray cluster")
        check(
            most * self.gpus_per_worker <= gpus,
            f"{most} workers of {self.gpus_per_worker:g} GPUs do not fit on this machine's {gpus}; "
            "use --gpus-per-worker 0, or join a Ray cluster (RAY_ADDRESS)",
        )

    def workers_for(self, job: JobSpec, wanted: int) -> int:
        """Workers of a job. One that much waits for takes as many as are `wanted`, unless told otherwise."""
        if kind_of(job).workers is Workers.ONE:
            return 1
        if kind_of(job).workers is Workers.TRIAL:
            return self.workers_per_trial
        wanted = self.source_workers or self._source_workers_of(wanted)
        most = wanted if self.source_workers else min(wanted, max(1, job.training.batch_size // MIN_IMAGES_PER_WORKER))
        return max(n for n in range(1, most + 1) if job.training.batch_size % n == 0)

    def _source_workers_of(self, wanted: int) -> int:
        if self.runner == "tune" or 0 < self.gpus_per_worker < 1:  # NCCL takes one worker per GPU
            return 1
        return max(self.workers_per_trial, wanted)

    def uses_worker_group(self, job: JobSpec, num_workers: int) -> bool:
        if self.runner == "tune" or kind_of(job).runs_inline(job):
            return False
        return self.groups_trials or num_workers > 1

    @property
    def groups_trials(self) -> bool:
        """Whether points run on worker groups."""
        return self.runner == "train" or self.workers_per_trial > 1

    def demand_of(self, job: JobSpec) -> tuple[dict[str, float], int]:
        """Resources of one worker of a job, and the least number of workers that it can run with."""
        asked = (self.source_workers or 1) if kind_of(job).workers is Workers.ALL else self.workers_per_trial
        runs_alone = kind_of(job).workers is Workers.ONE or not self.uses_worker_group(job, asked)
        return self.worker, 1 if runs_alone else asked

    @property
    def worker(self) -> dict[str, float]:
        """Resources of one worker. Jobs that run inline have them too, whatever they need: so their processes are reused."""
        return {"CPU": self.cpus_per_worker, **({"GPU": self.gpus_per_worker} if self.gpus_per_worker else {})}


def cluster_slots(runner: RunnerSpec) -> int:
    """Workers that fit on the cluster as it is now."""
    return room(runner.worker)


def trials_that_fit(runner: RunnerSpec) -> int:
    """Points that the cluster as it is now can run beside each other."""
    return max(1, cluster_slots(runner) // runner.workers_per_trial)
