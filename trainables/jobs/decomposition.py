"""Decompose an imported model into a learngene, train it under the constraint, and say what was lost on the way."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from fine_core.checkpoints.native import load_model
from fine_core.data.registry import load_dataset
from fine_core.dit import DiT
from fine_core.initializers.fine.decompose import decompose
from fine_core.initializers.fine.factorized import FactorizedDiT, merge
from fine_core.initializers.fine.learngene import Learngene
from fine_core.randomness import stream_seed
from trainables.initializations.fine import LearngeneRecipe
from trainables.jobs.scoring import score_model
from trainables.specs.models import DecomposedLearngeneSpec
from trainables.storage.files import LEARNGENE_FILE, MODEL_FILE
from trainables.storage.store import Store, Twin
from trainables.training.batches import BatchSource, DenoisingBatches, TaughtBatches
from trainables.training.context import RunContext
from trainables.training.loop import Progress, train


def run_decomposition(
    job: DecomposedLearngeneSpec, folder: Path, store: Store, run: RunContext, every: int, twin: Twin | None
) -> dict[str, Any]:
    """The record holds the reconstruction error of every matrix type, and FID of the given model, of the decomposed one, and
    of the same after training under the constraint."""
    source = load_model(store.fetch(job.source, MODEL_FILE), expect=job.model).to(run.device)
    factorized, errors = decompose(
        source,
        rank=job.rank,
        nested_widths=job.nested_widths,
        als_sweeps=job.als_sweeps,
        seed=stream_seed(job.seed, "init"),
    )
    scored = {"source": source, "decomposed": merge(copy.deepcopy(factorized).to(run.device))}
    learngene, progress = _train(job, source, factorized, store, run, every, twin)
    scored["trained"] = merge(learngene.assemble(job.model.size).to(run.device))
    scores = {
        name: score_model(dense, job.evaluation, job.extractor, store=store, seed=job.seed, run=run)
        for name, dense in scored.items()
    }
    if run.rank != 0:
        return {"metrics": {}}
    learngene.save(folder / LEARNGENE_FILE)
    metrics = {
        "train_s": progress.train_s,
        "train_steps": progress.step,
        "eval_s": sum(score.eval_s for score in scores.values()),
        "params_total": learngene.num_parameters,
        "initialize_bytes": (folder / LEARNGENE_FILE).stat().st_size,
        **{f"fid/{name}": score.fid for name, score in scores.items()},
        **{f"error/{matrix}/joint_svd": error.joint_svd for matrix, error in errors.items()},
        **{f"error/{matrix}/als": error.after_als for matrix, error in errors.items()},
    }
    return {"metrics": metrics, "protocol": scores["source"].protocol, "history": progress.history}


def _train(
    job: DecomposedLearngeneSpec,
    source: DiT,
    start: FactorizedDiT,
    store: Store,
    run: RunContext,
    every: int,
    twin: Twin | None,
) -> tuple[Learngene, Progress]:
    """Train the decomposed model under the constraint, unless a twin was."""
    if twin is not None:
        return Learngene.load(store.fetch(twin, LEARNGENE_FILE)), Progress.of_record(store.read_record(twin))
    batches: BatchSource = DenoisingBatches(
        load_dataset(job.dataset, "train"), job.training, null_label=job.model.num_classes, seed=job.seed, device=run.device
    )
    if job.teacher_weight > 0:
        batches = TaughtBatches(denoising=batches, teacher=source.eval(), teacher_weight=job.teacher_weight)
    recipe = LearngeneRecipe(job, start=start)
    model, progress = train(recipe, batches=batches, training=job.training, run=run, checkpoint_every_steps=every)
    return Learngene.from_model(model), progress
