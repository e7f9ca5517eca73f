"""Jobs on Ray Train: a worker group (DDP over gloo or nccl) around the training loop. The only module that knows Ray Train."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import PlacementGroupID, train
from ray.train.torch import TorchTrainer, get_device
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group_table,
    remove_placement_group,
)

from trainables.failures import FailureKind, failure_of
from trainables.jobs.run import run_task
from trainables.specs.base import JobSpec
from trainables.specs.tasks import Task
from trainables.storage.store import WORKER_GROUP_FOLDER, Store
from trainables.training.computing import Computing
from trainables.training.context import RunContext


@dataclass(frozen=True, kw_only=True)
class WorkerGroupSpec:
    """One job's `num_workers` equal workers with `cpus` CPUs and `gpus` GPUs (may be a fraction) each, and how they compute."""

    num_workers: int = 1
    gpus: float = 0.0
    cpus: int = 1
    computing: Computing = Computing()


class WorkerGroupFailed(RuntimeError):
    """A worker group that was started again as often as it may be."""


class TrainContext(RunContext):
    """A rank of a Ray Train worker group; checkpoints go through Ray to the storage path."""

    def __init__(self, computing: Computing) -> None:
        self.computing = computing
        context = train.get_context()
        self.rank, self.num_workers = context.get_world_rank(), context.get_world_size()
        self.device = get_device()

    @contextmanager
    def restore(self):
        checkpoint = train.get_checkpoint()
        if checkpoint is None:
            yield None
        else:
            with checkpoint.as_directory() as folder:
                yield Path(folder)

    def report(self, metrics: dict[str, Any], checkpoint: Path | None) -> None:
        train.report(metrics, checkpoint=None if checkpoint is None else train.Checkpoint.from_directory(checkpoint))


def _worker(config: dict[str, Any]) -> None:
    torch.set_num_threads(config["cpus"])
    context, task = TrainContext(config["computing"]), config["task"]
    store = Store(config["store_location"])
    if context.rank == 0:
        _note_resources(store, task.job)
    try:
        run_task(task, store.location, context, checkpoint_every_steps=config["checkpoint_every_steps"])
    except Exception as error:
        failure = failure_of(error, task.id, store)
        alone = failure.kind is FailureKind.OUT_OF_MEMORY and context.num_workers > 1  # the others wait for this one's report
        if failure.kind.is_retried or alone:
            raise
        # On all ranks alike where it is the model's or the input's fault; else the others end with this group.
        context.report({"failure": failure.to_json()}, None)


def _resources_file(store: Store, job: JobSpec) -> str:
    return f"{store.root}/{WORKER_GROUP_FOLDER}/{job.run_id}/resources"


def _note_resources(store: Store, job: JobSpec) -> None:
    with store.filesystem.open_output_stream(_resources_file(store, job)) as stream:
        stream.write(get_current_placement_group().id.hex().encode())


def _free_resources(store: Store, job: JobSpec) -> None:
    """Free what an earlier group of this job still holds: Ray itself does so only where its dashboard runs."""
    try:
        with store.filesystem.open_input_stream(_resources_file(store, job)) as stream:
            group = stream.readall().decode()
    except FileNotFoundError:
        return
    if placement_group_table().get(group, {}).get("state") in ("CREATED", "PENDING", "RESCHEDULING"):
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))


def run_on_worker_group(
    task: Task,
    store: Store,
    group: WorkerGroupSpec,
    *,
    checkpoint_every_steps: int,
    callbacks: list[Any],
    max_failures: int,
) -> None:
    """Run a task on its own worker group. The run is named by the job's `run_id`: submitted again, it resumes.

    Raises WorkerGroupFailed if its workers have failed more than `max_failures` times.
    """
    _free_resources(store, task.job)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "task": task,
            "store_location": store.location,
            "checkpoint_every_steps": checkpoint_every_steps,
            "computing": group.computing,
            "cpus": group.cpus,
        },
        scaling_config=train.ScalingConfig(
            num_workers=group.num_workers,
            use_gpu=group.gpus > 0,
            resources_per_worker={"CPU": group.cpus, **({"GPU": group.gpus} if group.gpus > 0 else {})},
        ),
        run_config=train.RunConfig(
            name=task.job.run_id,
            storage_path=f"{store.root}/{WORKER_GROUP_FOLDER}",
            storage_filesystem=store.filesystem,
            callbacks=callbacks,
            checkpoint_config=train.CheckpointConfig(num_to_keep=1),
            failure_config=train.FailureConfig(max_failures=max_failures, controller_failure_limit=3),
        ),
    )
    try:
        trainer.fit()
    except train.WorkerGroupError as error:
        raise WorkerGroupFailed(str(error)) from error
