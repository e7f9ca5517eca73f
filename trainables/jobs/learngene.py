"""Make a learngene: train it under the constraint of shared factors, from scratch or from a decomposed model."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from fine_core.checkpoints.native import load_model
from fine_core.dit import DiT
from fine_core.initializers.fine.decompose import decompose
from fine_core.initializers.fine.factorized import FactorizedDiT
from fine_core.initializers.fine.learngene import Learngene
from fine_core.initializers.rebuilt import merge
from fine_core.randomness import stream_generator, stream_seed
from trainables.jobs.context import JobContext, Result
from trainables.jobs.denoising import denoising_batches
from trainables.jobs.kind import JobKind, Kept, Role, Workers
from trainables.jobs.shapes import model_file_bytes
from trainables.jobs.work import Work, training_work
from trainables.specs.models import DecompositionSpec, LearngeneSpec
from trainables.storage.files import LEARNGENE_FILE, MODEL_FILE
from trainables.storage.store import Store
from trainables.training.batches import BatchSource, DistillingBatches
from trainables.training.loop import train
from trainables.training.phase import Phase


class LearngeneRecipe:
    """FINE phase 1: a model trained under the constraint, at a width drawn for every step; from scratch, or from `start`."""

    def __init__(self, spec: LearngeneSpec, start: FactorizedDiT | None = None) -> None:
        self.spec, self.start = spec, start
        self.phases = (Phase(name="learngene", steps=spec.training.steps, lr=spec.training.lr),)
        self.widths = sorted({spec.model.size.width, *spec.nested_widths})
        self.skips_parameters = len(self.widths) > 1

    def model_for(self, phase: int, previous: nn.Module | None) -> FactorizedDiT:
        if self.start is not None:
            return self.start
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(self.spec.data_seed, "init"))
            return FactorizedDiT(self.spec.model, rank=self.spec.rank, nested_widths=self.spec.nested_widths)

    def forward_options(self, step: int) -> dict[str, Any]:
        generator = stream_generator(self.spec.data_seed, "width", step)
        return {"width": self.widths[int(torch.randint(len(self.widths), (), generator=generator))]}


class _LearngeneKind(JobKind):
    """What a learngene from scratch and one from a given model have in common."""

    def result_bytes(self, job: LearngeneSpec | DecompositionSpec) -> int:
        return model_file_bytes(job.model)  # at most: shared factors take less

    def serve(self, job: LearngeneSpec | DecompositionSpec, store: Store) -> DiT:
        return merge(Learngene.load(store.fetch(job, LEARNGENE_FILE)).assemble(job.model.size))


class DecompositionKind(_LearngeneKind):
    name = "decomposition"
    workers = Workers.ONE

    def stage(self, job: DecompositionSpec) -> str:
        return "decompose"

    def runs_inline(self, job: DecompositionSpec) -> bool:
        return True

    def work(self, job: DecompositionSpec) -> Work:
        return Work(model=job.model)

    def run(self, job: DecompositionSpec, context: JobContext) -> Result:
        """Decompose the given model; the record holds the reconstruction error of every matrix type."""
        source = load_model(context.store.fetch(job.source, MODEL_FILE), expect=job.model)
        factorized, errors = decompose(
            source,
            rank=job.rank,
            nested_widths=job.nested_widths,
            als_sweeps=job.als_sweeps,
            seed=stream_seed(job.seed, "init"),
        )
        learngene = Learngene.from_model(factorized)
        metrics = {
            **{f"error/{matrix}/joint_svd": error.joint_svd for matrix, error in errors.items()},
            **{f"error/{matrix}/als": error.after_als for matrix, error in errors.items()},
        }
        return Result(metrics=metrics | _save(learngene, context))


class LearngeneKind(_LearngeneKind):
    name = "learngene"
    workers = Workers.ALL
    kept: ClassVar = Kept(file=LEARNGENE_FILE, role=Role.INITIALIZE, seconds="train_s", steps="train_steps")

    def stage(self, job: LearngeneSpec) -> str:
        return "source" if job.decomposition is None else "learngene"

    def work(self, job: LearngeneSpec) -> Work:
        return training_work(job.model, job.training)

    def run(self, job: LearngeneSpec, context: JobContext) -> Result:
        store, run = context.store, context.run
        batches: BatchSource = denoising_batches(job, run.device)
        recipe = LearngeneRecipe(job)
        if job.decomposition is not None:
            start = Learngene.load(store.fetch(job.decomposition, LEARNGENE_FILE)).factorized()
            recipe = LearngeneRecipe(job, start=start)
            if job.teacher_weight > 0:
                teacher = load_model(store.fetch(job.decomposition.source, MODEL_FILE), expect=job.model).to(run.device).eval()
                batches = DistillingBatches(denoising=batches, teacher=teacher, teacher_weight=job.teacher_weight)
        model, progress = train(
            recipe, batches=batches, training=job.training, run=run, checkpoint_every_steps=context.checkpoint_every_steps
        )
        learngene = Learngene.from_model(model)
        metrics = {**progress.costs(job.model, job.training, run), **_save(learngene, context)}
        return Result(metrics=metrics, history=progress.history)


def _save(learngene: Learngene, context: JobContext) -> dict[str, float]:
    """Write the learngene (on rank 0); returns what it takes."""
    if context.run.rank != 0:
        return {}
    path = context.folder / LEARNGENE_FILE
    learngene.save(path)
    return {"params_total": learngene.num_parameters, "initialize_bytes": path.stat().st_size}
