"""What scores models on a dataset: an extractor, a reference and, for latents, a VAE; made once, then loaded by every score."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fine_core.checkpoints.native import CheckpointError
from fine_core.data.latents import VAE_CONFIG, VAE_WEIGHTS, decode, load_vae
from fine_core.data.pixels import to_uint8
from fine_core.data.registry import dataset_info, load_dataset, reference_dataset, rows_in_mixed_order
from fine_core.data.source import DataError
from fine_core.evaluation.adm import reference_from_adm
from fine_core.evaluation.extractors.classifier import load_extractor, save_extractor, train_extractor
from fine_core.evaluation.extractors.given import load_given_extractor, weights_sha256
from fine_core.evaluation.features import extract_features
from fine_core.evaluation.reference import Reference, ReferenceBuilder
from trainables.jobs.context import JobContext, Result
from trainables.jobs.kind import JobKind, Workers
from trainables.jobs.work import Work
from trainables.specs.base import VaeSpec
from trainables.specs.scorers import ExtractorSpec, GivenExtractorSpec
from trainables.storage.files import EXTRACTOR_FILE, REFERENCE_FILE
from trainables.storage.store import Store
from trainables.training.context import RunContext

BATCH_SIZE = 64
NUM_REPORTS = 20
EXTRACTOR_S = 5.0  # to train the classifier of an embedded dataset, on one core
KEPT_SCORERS = 4  # in a process: source and target, each of two sweeps


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """`extractor_name` and `reference_name` are for protocols; `vae` and `scale` are of models that draw latents."""

    extractor: nn.Module
    extractor_name: str
    reference: Reference
    reference_name: str
    vae: nn.Module | None = None
    scale: float = 1.0

    def to_images(self, drawn: Tensor) -> Tensor:
        """uint8 images (N, C, H, H) of what a model drew."""
        return to_uint8(drawn) if self.vae is None else decode(self.vae, drawn, scale=self.scale)


_LOADED: dict[tuple, Scorer] = {}


def load_scorer(job: ExtractorSpec, store: Store, device: torch.device) -> Scorer:
    """The scorer of a finished job, on a device; loaded once per process. Raises StoreError or CheckpointError for damaged
    files."""
    key = (job.id, store.location, str(device), *sorted(store.record(job).hashes.items()))
    if key not in _LOADED:
        if len(_LOADED) >= KEPT_SCORERS:
            _LOADED.pop(next(iter(_LOADED)))
        _LOADED[key] = _load_scorer(job, store, device)
    return _LOADED[key]


def _load_scorer(job: ExtractorSpec, store: Store, device: torch.device) -> Scorer:
    reference = Reference.load(store.fetch(job, REFERENCE_FILE)).to(device)
    if not isinstance(job, GivenExtractorSpec):
        extractor = load_extractor(store.fetch(job, EXTRACTOR_FILE)).to(device)
        named = {"extractor_name": extractor.name, "reference_name": f"{job.dataset}:pool"}
        return Scorer(extractor=extractor, reference=reference, **named)
    extractor = _given_extractor(job, store).to(device)
    named = {"extractor_name": job.quoted, "reference_name": _reference_name(job)}
    latents = dataset_info(job.dataset).latents
    if latents is None:
        return Scorer(extractor=extractor, reference=reference, **named)
    vae = load_stored_vae(job.vae, store).to(device)
    named["extractor_name"] += f" | VAE@{job.vae.sha256[:12]}"
    return Scorer(extractor=extractor, reference=reference, vae=vae, scale=latents.scale, **named)


def load_stored_vae(job: VaeSpec, store: Store) -> nn.Module:
    return load_vae(store.fetch(job, VAE_CONFIG), store.fetch(job, VAE_WEIGHTS))


def _given_extractor(job: GivenExtractorSpec, store: Store) -> nn.Module:
    extractor = load_given_extractor(store.fetch(job.extractor, job.extractor.name), format=job.format)
    if weights_sha256(extractor) != job.weights_sha256:
        raise CheckpointError(f"{job.extractor.name} has other weights here than where the sweep was planned")
    return extractor


def _reference_name(job: GivenExtractorSpec) -> str:
    return f"{reference_dataset(job.dataset)}:pool" if job.reference is None else job.reference.quoted


class ExtractorKind(JobKind):
    name = "extractor"
    workers = Workers.ONE

    def stage(self, job: ExtractorSpec) -> str:
        return "source"

    def work(self, job: ExtractorSpec) -> Work:
        return Work(fixed_s=EXTRACTOR_S)

    def runs_inline(self, job: ExtractorSpec) -> bool:
        return not isinstance(job, GivenExtractorSpec)  # a given one may be as large as Inception, and want a GPU

    def run(self, job: ExtractorSpec, context: JobContext) -> Result:
        """Train or load the extractor, and take the reference statistics."""
        started = time.perf_counter()
        store, run, folder = context.store, context.run, context.folder
        metrics: dict[str, float] = {}
        if isinstance(job, GivenExtractorSpec):
            extractor = _given_extractor(job, store).to(run.device)
        else:
            extractor, accuracy = train_extractor(dataset_info(job.dataset).features_of or job.dataset, seed=job.seed)
            save_extractor(extractor, folder / EXTRACTOR_FILE)
            metrics["held_out_accuracy"] = accuracy
        if isinstance(job, GivenExtractorSpec) and job.reference is not None:
            reference = reference_from_adm(store.fetch(job.reference, job.reference.name), extractor)
        else:
            reference = _reference_of(reference_dataset(job.dataset), extractor, run)
        reference.save(folder / REFERENCE_FILE)
        return Result(metrics={**metrics, "train_s": time.perf_counter() - started})


def _reference_of(dataset: str, extractor: nn.Module, run: RunContext) -> Reference:
    data, builder = load_dataset(dataset, "pool").to(run.device), ReferenceBuilder()
    report_every = max(BATCH_SIZE, len(data) // NUM_REPORTS)
    done = 0
    for rows in rows_in_mixed_order(data, BATCH_SIZE):  # mixed: of the features, the first ones are kept
        images = to_uint8(data.take(rows))
        _check_images(images, dataset)
        builder.add(extract_features(extractor, images))
        if (done + len(rows)) // report_every > done // report_every:
            run.report({"step": done + len(rows), "total_steps": len(data), "phase": "features", "history": []}, None)
        done += len(rows)
    return builder.build()


def _check_images(images: Tensor, dataset: str) -> None:
    if images.shape[1] not in (1, 3):
        raise DataError(f"{dataset} holds no images that can be a reference; name one with --reference")
