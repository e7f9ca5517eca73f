"""Scores of a model: images drawn by all workers together, features, FID and KID under a protocol."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.utils import make_grid

from fine_core.data import labels_to_sample, load_dataset
from fine_core.dit import DiT
from fine_core.evaluation import EvaluationSpec, fid_from_features, kid_from_features, precision_and_recall
from fine_core.extractor import extract_features, load_extractor
from fine_core.sampling import Tail, sample_batch
from trainables.context import RunContext
from trainables.files import EXTRACTOR_FILE, FEATURES_FILE
from trainables.spec import ExtractorSpec, TrialSpec
from trainables.store import Store

NUM_SHOWN_SAMPLES = 40


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores on one dataset with their protocol, and the first images (N, C, H, H), uint8, to look at."""

    fid: float
    kid: float
    precision: float
    recall: float
    protocol: str
    shown: Tensor
    eval_s: float


def score_model(
    model: DiT,
    spec: EvaluationSpec,
    extractor_job: ExtractorSpec,
    *,
    store: Store,
    seed: int,
    run: RunContext,
    tail: Tail | None = None,
) -> Scores:
    """Score a model on the dataset of `extractor_job`, whose artifact holds the reference features. The same on all ranks."""
    started = time.perf_counter()
    extractor = load_extractor(store.fetch(extractor_job, EXTRACTOR_FILE)).to(run.device)
    reference = load_file(store.fetch(extractor_job, FEATURES_FILE))[spec.reference_split]
    features, shown = _sample_features(model, extractor, spec, dataset=extractor_job.dataset, seed=seed, run=run, tail=tail)
    precision, recall = precision_and_recall(reference, features)
    return Scores(
        precision=precision,
        recall=recall,
        fid=fid_from_features(reference, features),
        kid=kid_from_features(reference, features, seed=seed),
        protocol=spec.protocol(extractor_job.dataset, extractor.name),
        shown=shown,
        eval_s=time.perf_counter() - started,
    )


def score_source(model: DiT, base: TrialSpec, store: Store, run: RunContext) -> Scores:
    """Score what a model knows of a base model's dataset under the null label, by the base's own protocol otherwise."""
    spec = replace(base.evaluation, unconditional=True)
    return score_model(model, spec, base.extractor, store=store, seed=base.seed, run=run)


def _sample_features(
    model: DiT, extractor: nn.Module, spec: EvaluationSpec, *, dataset: str, seed: int, run: RunContext, tail: Tail | None
) -> tuple[Tensor, Tensor]:
    """Features (num_samples, F) of generated images, drawn by all workers together, and the first images."""
    model.eval()
    labels = labels_to_sample(load_dataset(dataset, spec.reference_split), spec.num_samples).to(run.device)
    if spec.unconditional:
        labels = torch.full_like(labels, model.config.num_classes)
    mine: dict[int, tuple[Tensor, Tensor]] = {}
    for index, batch_labels in enumerate(labels.split(spec.batch_size)):
        if index % run.num_workers == run.rank:  # batches have their own streams: images do not depend on who draws them
            images = sample_batch(model, batch_labels, spec.sampler, seed=seed, index=index, tail=tail)
            mine[index] = (extract_features(extractor, images), images[:NUM_SHOWN_SAMPLES].cpu())
    by_index = {index: pair for part in run.gather(mine) for index, pair in part.items()}
    ordered = [by_index[index] for index in sorted(by_index)]
    return torch.cat([features for features, _ in ordered]), ordered[0][1]


def save_grid(images: Tensor, path: Path) -> None:
    """Write uint8 images (N, C, H, H) as one picture, enlarged to be seen."""
    grid = make_grid(images, nrow=10, padding=1, pad_value=128)  # (3, height, width)
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    enlarged = max(1, 64 // images.shape[-1])
    picture.resize((picture.width * enlarged, picture.height * enlarged), Image.Resampling.NEAREST).save(path)
