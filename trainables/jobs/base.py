"""Train a base model from its initialization."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from fine_core.checkpoints.native import load_model, save_model
from fine_core.dit import DiT, count_macs, count_parameters
from trainables.initializations import initialization
from trainables.jobs.context import JobContext, Result
from trainables.jobs.denoising import denoising_batches
from trainables.jobs.kind import JobKind, Kept, Role
from trainables.jobs.shapes import model_file_bytes
from trainables.jobs.work import Work, training_work
from trainables.specs.models import BaseModelSpec
from trainables.storage.files import MODEL_FILE
from trainables.storage.store import Store
from trainables.training.loop import Progress, train


def train_base(job: BaseModelSpec, context: JobContext, *, until_step: int | None = None) -> tuple[nn.Module, Progress]:
    """Train a base model to its end, or to a milestone."""
    batches = denoising_batches(job, context.run.device)
    return train(
        initialization(job.initialization.name).recipe(job, context.store),
        batches=batches,
        training=job.training,
        run=context.run,
        checkpoint_every_steps=context.checkpoint_every_steps,
        until_step=until_step,
        milestones=context.milestones,
    )


class BaseKind(JobKind):
    name = "base"
    kept: ClassVar = Kept(file=MODEL_FILE, role=Role.SERVE, seconds="train_s")

    def work(self, job: BaseModelSpec) -> Work:
        return training_work(job.model, job.training)

    def result_bytes(self, job: BaseModelSpec) -> int:
        return model_file_bytes(job.model)

    def serve(self, job: BaseModelSpec, store: Store) -> DiT:
        return load_model(store.fetch(job, MODEL_FILE), expect=job.model)

    def run(self, job: BaseModelSpec, context: JobContext) -> Result:
        store, run = context.store, context.run
        model, progress = train_base(job, context)
        start = initialization(job.initialization.name)
        if run.rank != 0:
            return Result(served=model)
        save_model(model, context.folder / MODEL_FILE)
        metrics = {
            **progress.costs(job.model, job.training, run),
            "params_total": count_parameters(job.model),
            "params_trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "macs": count_macs(job.model),
            "serve_bytes": (context.folder / MODEL_FILE).stat().st_size,
            "initialize_bytes": start.initialize_bytes(job, store),
        }
        return Result(metrics=metrics, history=progress.history, served=model)
