"""Run one job, whatever its kind, from its latest checkpoint to its record in the store."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.utils import make_grid

from fine_core.checkpoints import save_model
from fine_core.data import dataset_info, labels_to_sample, load_dataset
from fine_core.dit import DiT, count_macs, count_parameters
from fine_core.evaluation import EvaluationSpec, fid_from_features, kid_from_features
from fine_core.extractor import extract_features, load_extractor, save_extractor, train_extractor
from fine_core.learngene import Learngene
from fine_core.sampling import sample_batches, to_uint8
from trainables.context import RunContext
from trainables.initializations import recipe_for
from trainables.initializations.fine import LearngeneRecipe
from trainables.loop import Progress, Recipe, train
from trainables.provenance import PeakMemory, provenance
from trainables.spec import ExtractorSpec, FineSpec, JobSpec, LearngeneSpec, TrialSpec
from trainables.store import Store

MODEL_FILE, LEARNGENE_FILE, SAMPLES_FILE = "model.safetensors", "learngene.safetensors", "samples.png"
EXTRACTOR_FILE, FEATURES_FILE = "extractor.safetensors", "features.safetensors"
NUM_SHOWN_SAMPLES = 40


def run_job(job: JobSpec, store_location: str, run: RunContext, *, checkpoint_every_steps: int) -> None:
    """Compute a job and publish its files and record; does nothing if the store has them already."""
    store = Store(store_location)
    if store.read_record(job) is not None:
        return
    started = time.perf_counter()
    memory = PeakMemory(run.device)
    with tempfile.TemporaryDirectory() as folder:
        match job:
            case ExtractorSpec():
                record = _run_extractor(job, Path(folder))
            case LearngeneSpec():
                record = _run_learngene(job, Path(folder), run, checkpoint_every_steps)
            case TrialSpec():
                record = _run_trial(job, Path(folder), store, run, checkpoint_every_steps)
        if run.rank == 0:
            record["metrics"] |= {"peak_memory_bytes": memory.bytes(), "job_s": time.perf_counter() - started}
            common = {
                "id": job.id,
                "kind": job.kind,
                "label": job.label,
                "spec": asdict(job),
                "provenance": provenance(),
            }
            store.publish(job, Path(folder), {**common, **record})
    run.report({"published": True}, None)


def _run_extractor(job: ExtractorSpec, folder: Path) -> dict[str, Any]:
    started = time.perf_counter()
    extractor, accuracy = train_extractor(job.dataset, seed=job.seed)
    save_extractor(extractor, folder / EXTRACTOR_FILE)
    splits = {split: load_dataset(job.dataset, split) for split in ("train", "held_out")}
    features = {split: extract_features(extractor, to_uint8(data.images)) for split, data in splits.items()}
    save_file(features, folder / FEATURES_FILE)
    metrics = {"held_out_accuracy": accuracy, "train_s": time.perf_counter() - started}
    return {"metrics": metrics, "extractor": extractor.name}


def _train(recipe: Recipe, job: LearngeneSpec | TrialSpec, run: RunContext, every: int) -> tuple[nn.Module, Progress]:
    return train(
        recipe,
        data=load_dataset(job.dataset, "train"),
        num_classes=dataset_info(job.dataset).num_classes,
        training=job.training,
        seed=job.seed,
        run=run,
        checkpoint_every_steps=every,
    )


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


def _run_trial(job: TrialSpec, folder: Path, store: Store, run: RunContext, every: int) -> dict[str, Any]:
    recipe = recipe_for(job, lambda spec: Learngene.load(store.fetch(spec, LEARNGENE_FILE)))
    model, progress = _train(recipe, job, run, every)
    started = time.perf_counter()
    extractor = load_extractor(store.fetch(job.extractor, EXTRACTOR_FILE)).to(run.device)
    reference = load_file(store.fetch(job.extractor, FEATURES_FILE))[job.evaluation.reference_split]
    features, shown = sample_features(model, extractor, job.evaluation, dataset=job.dataset, seed=job.seed, run=run)
    if run.rank != 0:
        return {"metrics": {}}
    metrics = {
        "fid": fid_from_features(reference, features),
        "kid": kid_from_features(reference, features, seed=job.seed),
        "eval_s": time.perf_counter() - started,
        "train_s": progress.train_s,
        "train_steps": progress.step,
        "params_total": count_parameters(job.model),
        "params_trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "macs": count_macs(job.model),
        "initialize_bytes": _initialize_bytes(job, store),
    }
    save_model(model, folder / MODEL_FILE)
    metrics["serve_bytes"] = (folder / MODEL_FILE).stat().st_size
    save_grid(shown, folder / SAMPLES_FILE)
    protocol = job.evaluation.protocol(job.dataset, extractor.name)
    return {"metrics": metrics, "protocol": protocol, "history": progress.history}


def _initialize_bytes(job: TrialSpec, store: Store) -> int:
    """Bytes that must be kept to initialize any size this way: the learngene's file, or nothing."""
    if not isinstance(job.initialization, FineSpec):
        return 0
    return store.read_record(job.initialization.learngene)["files"][LEARNGENE_FILE]["bytes"]


def sample_features(
    model: DiT, extractor: nn.Module, spec: EvaluationSpec, *, dataset: str, seed: int, run: RunContext
) -> tuple[Tensor, Tensor]:
    """Features (num_samples, F) of generated images, drawn by all workers together, and the first images to look at."""
    model.eval()
    reference = load_dataset(dataset, spec.reference_split)
    labels = labels_to_sample(reference, spec.num_samples).to(run.device)
    batches = sample_batches(
        model, labels, spec.sampler, seed=seed, batch_size=spec.batch_size, worker=run.rank, num_workers=run.num_workers
    )
    mine = {i: (extract_features(extractor, images), images[:NUM_SHOWN_SAMPLES].cpu()) for i, images in batches}
    by_index = {index: pair for part in run.gather(mine) for index, pair in part.items()}
    ordered = [by_index[index] for index in sorted(by_index)]
    return torch.cat([features for features, _ in ordered]), ordered[0][1]


def save_grid(images: Tensor, path: Path) -> None:
    """Write uint8 images (N, C, H, H) as one picture, enlarged to be seen."""
    grid = make_grid(images, nrow=10, padding=1, pad_value=128)  # (3, height, width)
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    enlarged = max(1, 64 // images.shape[-1])
    picture.resize((picture.width * enlarged, picture.height * enlarged), Image.Resampling.NEAREST).save(path)
