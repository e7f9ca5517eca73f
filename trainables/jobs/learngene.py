"""Make a learngene: train it under the constraint of shared factors, from scratch or from a decomposed model."""

from __future__ import annotations

from fine_core.checkpoints.native import load_model
from fine_core.data.registry import load_dataset
from fine_core.initializers.fine.decompose import decompose
from fine_core.initializers.fine.learngene import Learngene
from fine_core.randomness import stream_seed
from trainables.initializations.fine import LearngeneRecipe
from trainables.jobs.context import JobContext, Result
from trainables.specs.models import DecompositionSpec, LearngeneSpec
from trainables.storage.files import LEARNGENE_FILE, MODEL_FILE
from trainables.training.batches import BatchSource, DenoisingBatches, DistillingBatches
from trainables.training.loop import train


def run_decomposition(job: DecompositionSpec, context: JobContext) -> Result:
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


def run_learngene(job: LearngeneSpec, context: JobContext) -> Result:
    store, run = context.store, context.run
    batches: BatchSource = DenoisingBatches(
        load_dataset(job.dataset, "train"),
        job.training,
        null_label=job.model.num_classes,
        seed=job.data_seed,
        device=run.device,
    )
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
    metrics = {"train_s": progress.train_s, "train_steps": progress.step, **_save(learngene, context)}
    return Result(metrics=metrics, history=progress.history)


def _save(learngene: Learngene, context: JobContext) -> dict[str, float]:
    """Write the learngene (on rank 0); returns what it takes."""
    if context.run.rank != 0:
        return {}
    path = context.folder / LEARNGENE_FILE
    learngene.save(path)
    return {"params_total": learngene.num_parameters, "initialize_bytes": path.stat().st_size}
