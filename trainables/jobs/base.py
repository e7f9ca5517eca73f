"""Train a base model from its initialization."""

from __future__ import annotations

from fine_core.checkpoints.native import load_model, save_model
from fine_core.data.registry import load_dataset
from fine_core.dit import DiT, count_macs, count_parameters
from fine_core.initializers.fine.learngene import Learngene
from trainables.initializations import recipe_for
from trainables.jobs.context import JobContext, Result
from trainables.specs.base import SourceSpec
from trainables.specs.models import BaseModelSpec, LearngeneSpec
from trainables.storage.files import LEARNGENE_FILE, MODEL_FILE
from trainables.storage.store import Store
from trainables.training.batches import DenoisingBatches
from trainables.training.loop import train


def run_base(job: BaseModelSpec, context: JobContext) -> Result:
    store, run = context.store, context.run
    batches = DenoisingBatches(
        load_dataset(job.dataset, "train"),
        job.training,
        null_label=job.model.num_classes,
        seed=job.data_seed,
        device=run.device,
    )
    recipe = recipe_for(job, lambda spec: _load_start(spec, store))
    model, progress = train(
        recipe, batches=batches, training=job.training, run=run, checkpoint_every_steps=context.checkpoint_every_steps
    )
    if run.rank != 0:
        return Result(served=model)
    save_model(model, context.folder / MODEL_FILE)
    metrics = {
        "train_s": progress.train_s,
        "train_steps": progress.step,
        "params_total": count_parameters(job.model),
        "params_trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "macs": count_macs(job.model),
        "serve_bytes": (context.folder / MODEL_FILE).stat().st_size,
        "initialize_bytes": initialize_bytes(job, store),
    }
    return Result(metrics=metrics, history=progress.history, served=model)


def _load_start(spec: LearngeneSpec | SourceSpec, store: Store) -> Learngene | DiT:
    if isinstance(spec, LearngeneSpec):
        return Learngene.load(store.fetch(spec, LEARNGENE_FILE))
    return load_model(store.fetch(spec, MODEL_FILE), expect=spec.model)


def initialize_bytes(job: BaseModelSpec, store: Store) -> int:
    """Bytes that must be kept to initialize any size this way: the learngene's file, or nothing."""
    records = (store.record(need) for need in job.needs)
    return sum(record.files[LEARNGENE_FILE].bytes for record in records if LEARNGENE_FILE in record.files)
