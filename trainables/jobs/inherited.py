"""Make what base models inherit: train an ancestor, keep what an initialization needs of it, or train in its own form."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import torch
from torch import nn

from fine_core.checkpoints.native import config_to_json, load_model, predicted_file_bytes, save_model
from fine_core.dit import DiT
from fine_core.initializers.inherited import ConstrainedInheritance, Inherited, fresh_model
from fine_core.initializers.rebuilt import RebuiltDiT
from fine_core.randomness import stream_seed
from trainables.jobs.context import JobContext, Result
from trainables.jobs.denoising import denoising_batches
from trainables.jobs.kind import JobKind, Kept, Role, Workers
from trainables.jobs.shapes import model_file_bytes
from trainables.jobs.work import Work, training_work
from trainables.specs.inherited import AncestorSpec, InheritedSpec
from trainables.storage.files import INHERITED_FILE, MODEL_FILE
from trainables.storage.store import Store
from trainables.training.loop import Progress, train
from trainables.training.phase import Phase


class PretrainingRecipe:
    """One phase from DiT's own initialization, or from that of a form."""

    skips_parameters = False

    def __init__(self, job: AncestorSpec | InheritedSpec) -> None:
        self.job = job
        self.phases = (Phase(name="pretraining", steps=job.training.steps, lr=job.training.lr),)

    def model_for(self, phase: int, previous: nn.Module | None) -> DiT | RebuiltDiT:
        seed = stream_seed(self.job.data_seed, "init")
        if isinstance(self.job, AncestorSpec):
            return fresh_model(self.job.model, seed)
        assert isinstance(self.job.form, ConstrainedInheritance)
        return self.job.form.constrained(self.job.model, seed=seed)

    def forward_options(self, step: int) -> dict[str, Any]:
        return {}


def _pretrained(job: AncestorSpec | InheritedSpec, context: JobContext) -> tuple[nn.Module, Progress]:
    batches = denoising_batches(job, context.run.device)
    return train(
        PretrainingRecipe(job),
        batches=batches,
        training=job.training,
        run=context.run,
        checkpoint_every_steps=context.checkpoint_every_steps,
    )


class AncestorKind(JobKind):
    name = "ancestor"
    workers = Workers.ALL
    kept: ClassVar = Kept(file=MODEL_FILE, role=Role.INITIALIZE, seconds="train_s", steps="train_steps")
    is_passing = True

    def stage(self, job: AncestorSpec) -> str:
        return "source"

    def work(self, job: AncestorSpec) -> Work:
        return training_work(job.model, job.training)

    def result_bytes(self, job: AncestorSpec) -> int:
        return model_file_bytes(job.model)

    def serve(self, job: AncestorSpec, store: Store) -> DiT:
        return load_model(store.fetch(job, MODEL_FILE), expect=job.model)

    def run(self, job: AncestorSpec, context: JobContext) -> Result:
        model, progress = _pretrained(job, context)
        assert isinstance(model, DiT)
        if context.run.rank == 0:
            save_model(model, context.folder / MODEL_FILE)
        return Result(metrics=progress.costs(job.model, job.training, context.run), history=progress.history, served=model)


class InheritedKind(JobKind):
    name = "inherited"
    workers = Workers.ALL
    kept: ClassVar = Kept(file=INHERITED_FILE, role=Role.INITIALIZE, seconds="one_off_s", steps="one_off_steps")

    def stage(self, job: InheritedSpec) -> str:
        return "source" if job.ancestor is None else "keep"

    def runs_inline(self, job: InheritedSpec) -> bool:
        return job.ancestor is not None

    def work(self, job: InheritedSpec) -> Work:
        return training_work(job.model, job.training) if job.ancestor is None else Work(model=job.model)

    def result_bytes(self, job: InheritedSpec) -> int:
        with torch.device("meta"):
            kept = job.form.keep(DiT(job.model))
        shapes = {name: tuple(tensor.shape) for name, tensor in kept.items()}
        return predicted_file_bytes(shapes, kind="inherited", config=config_to_json(job.model))

    def run(self, job: InheritedSpec, context: JobContext) -> Result:
        """`one_off_s`, `one_off_steps`: what it took to make, the ancestor's training included."""
        store, run = context.store, context.run
        started = time.perf_counter()
        if job.ancestor is None:
            model, progress = _pretrained(job, context)
            assert isinstance(job.form, ConstrainedInheritance) and isinstance(model, RebuiltDiT)
            tensors, history = job.form.keep_of(model), progress.history
            costs = progress.costs(job.model, job.training, run)
            one_off = {"one_off_s": costs["train_s"], "one_off_steps": costs["train_steps"]}
        else:
            ancestor, before = load_model(store.fetch(job.ancestor, MODEL_FILE), expect=job.model), store.record(job.ancestor)
            tensors, history, costs = job.form.keep(ancestor), [], {}
            spent_s = time.perf_counter() - started
            one_off = {
                "one_off_s": before.metrics.get("train_s", 0.0) + spent_s,  # a given model's training is not known
                "one_off_steps": before.metrics.get("train_steps", 0.0),
            }
        if run.rank != 0:
            return Result()
        path = context.folder / INHERITED_FILE
        Inherited(config=job.model, tensors=tensors).save(path)
        kept = {"params_total": sum(tensor.numel() for tensor in tensors.values()), "initialize_bytes": path.stat().st_size}
        return Result(metrics={**costs, **one_off, **kept}, history=history)
