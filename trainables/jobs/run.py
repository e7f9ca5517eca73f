"""Run one job, whatever its kind, from its latest checkpoint to its record in the store."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from torch import nn

from fine_core.checkpoints.native import load_model, save_model
from fine_core.data.by_path import is_by_path
from fine_core.data.registry import load_dataset
from fine_core.dit import DiT, count_macs, count_parameters
from fine_core.initializers.fine.learngene import Learngene
from trainables.initializations import recipe_for
from trainables.initializations.fine import LearngeneRecipe
from trainables.jobs.bank import run_bank
from trainables.jobs.curve import run_curve
from trainables.jobs.decomposition import run_decomposition
from trainables.jobs.scorer import run_extractor
from trainables.jobs.scoring import save_grid, score_model, score_source
from trainables.jobs.transfer import run_rung, run_transfer
from trainables.specs.base import JobSpec, SourceSpec
from trainables.specs.models import DecomposedLearngeneSpec, FineSpec, LearngeneSpec, TrialSpec
from trainables.specs.scorers import ExtractorSpec
from trainables.specs.transfers import BankSpec, CurveSpec, RungSpec, TransferSpec
from trainables.storage.files import LEARNGENE_FILE, MODEL_FILE, SAMPLES_FILE
from trainables.storage.provenance import PeakMemory, common_record
from trainables.storage.store import Store, Twin
from trainables.training.batches import DenoisingBatches
from trainables.training.context import RunContext
from trainables.training.loop import Progress, Recipe, train


def run_job(job: JobSpec, store_location: str, run: RunContext, *, checkpoint_every_steps: int) -> None:
    """Compute a job and publish its files and record; does nothing if the store has them already."""
    store = Store(store_location)
    if store.read_record(job) is not None:
        return
    started = time.perf_counter()
    memory, twin = PeakMemory(run.device), run.agreed(store.twin(job) if run.rank == 0 else None)
    with tempfile.TemporaryDirectory() as folder:
        match job:
            case ExtractorSpec():
                record = run_extractor(job, Path(folder), store, run)
            case DecomposedLearngeneSpec():
                record = run_decomposition(job, Path(folder), store, run, checkpoint_every_steps, twin)
            case LearngeneSpec():
                record = _run_learngene(job, Path(folder), run, checkpoint_every_steps)
            case TrialSpec():
                record = _run_trial(job, Path(folder), store, run, checkpoint_every_steps, twin)
            case BankSpec():
                record = run_bank(job, Path(folder), store, run, twin)
            case RungSpec():
                record = run_rung(job, store, run, checkpoint_every_steps)
            case TransferSpec():
                record = run_transfer(job, Path(folder), store, run, checkpoint_every_steps, twin)
            case CurveSpec():
                record = run_curve(job, store, run)
        if run.rank == 0:
            record["metrics"] |= {"peak_memory_bytes": memory.bytes(), "job_s": time.perf_counter() - started}
            record |= {"made_by": None if twin is None else twin.folder, "unreadable_images": _unreadable_images(job)}
            store.publish(job, Path(folder), {**common_record(job), **record})
    run.report({"published": True}, None)


def _unreadable_images(job: JobSpec) -> list[str]:
    """Files of the job's dataset that this process could not decode, and took the next one for."""
    dataset = getattr(job, "dataset", None)
    return load_dataset(dataset, "train").corrupt if dataset is not None and is_by_path(dataset) else []


def _train(recipe: Recipe, job: LearngeneSpec | TrialSpec, run: RunContext, every: int) -> tuple[nn.Module, Progress]:
    batches = DenoisingBatches(
        load_dataset(job.dataset, "train"),
        job.training,
        null_label=job.model.num_classes,
        seed=job.seed,
        device=run.device,
    )
    return train(recipe, batches=batches, training=job.training, run=run, checkpoint_every_steps=every)


def _run_learngene(job: LearngeneSpec, folder: Path, run: RunContext, every: int) -> dict[str, Any]:
    model, progress = _train(LearngeneRecipe(job), job, run, every)
    learngene = Learngene.from_model(model)
    learngene.save(folder / LEARNGENE_FILE)
    metrics = {
        "train_s": progress.train_s,
        "params_total": learngene.num_parameters,
        "initialize_bytes": (folder / LEARNGENE_FILE).stat().st_size,
    }
    return {"metrics": metrics, "history": progress.history}


def _load_start(spec: LearngeneSpec | SourceSpec, store: Store) -> Learngene | DiT:
    if isinstance(spec, LearngeneSpec):
        return Learngene.load(store.fetch(spec, LEARNGENE_FILE))
    return load_model(store.fetch(spec, MODEL_FILE), expect=spec.model)


def _trained(job: TrialSpec, store: Store, run: RunContext, every: int, twin: Twin | None) -> tuple[DiT, Progress, int]:
    """The model of a trial, how its training went and how many parameters it moved last; trained only if no twin was."""
    if twin is not None:
        record = store.read_record(twin)
        model = load_model(store.fetch(twin, MODEL_FILE), expect=job.model).to(run.device)
        return model, Progress.of_record(record), record["metrics"]["params_trainable"]
    model, progress = _train(recipe_for(job, lambda spec: _load_start(spec, store)), job, run, every)
    return model, progress, sum(p.numel() for p in model.parameters() if p.requires_grad)


def _run_trial(job: TrialSpec, folder: Path, store: Store, run: RunContext, every: int, twin: Twin | None) -> dict[str, Any]:
    model, progress, num_trainable = _trained(job, store, run, every, twin)
    scores = score_model(model, job.evaluation, job.extractor, store=store, seed=job.seed, run=run)
    source = score_source(model, job, store, run)
    if run.rank != 0:
        return {"metrics": {}}
    save_model(model, folder / MODEL_FILE)
    save_grid(scores.shown, folder / SAMPLES_FILE)
    metrics = {
        **scores.values,
        "source_fid": source.fid,
        "eval_s": scores.eval_s + source.eval_s,
        "train_s": progress.train_s,
        "train_steps": progress.step,
        "params_total": count_parameters(job.model),
        "params_trainable": num_trainable,
        "macs": count_macs(job.model),
        "serve_bytes": (folder / MODEL_FILE).stat().st_size,
        "initialize_bytes": _initialize_bytes(job, store),
    }
    protocols = {"protocol": scores.protocol, "source_protocol": source.protocol}
    return {"metrics": metrics, **protocols, "history": progress.history}


def _initialize_bytes(job: TrialSpec, store: Store) -> int:
    """Bytes that must be kept to initialize any size this way: the learngene's file, or nothing."""
    if not isinstance(job.initialization, FineSpec):
        return 0
    return store.read_record(job.initialization.learngene)["files"][LEARNGENE_FILE]["bytes"]
