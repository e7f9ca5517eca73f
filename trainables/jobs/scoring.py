"""Scores of a model: images drawn by all workers together, their features, and what a protocol makes of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from fine_core.data.registry import labels_to_sample, load_dataset
from fine_core.dit import DiT
from fine_core.evaluation.features import Features, extract_features
from fine_core.evaluation.protocol import EvaluationSpec
from fine_core.evaluation.scores import compute_scores
from fine_core.sampling.draw import Tail, draw_batch
from trainables.jobs.scorer import Scorer, load_scorer
from trainables.specs.models import TrialSpec
from trainables.specs.scorers import ExtractorSpec
from trainables.storage.store import Store
from trainables.training.context import RunContext

NUM_SHOWN_SAMPLES = 40
EXTRACTED_AT_ONCE = 64  # images: an extractor may be as large as Inception


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores on one dataset by their names, with their protocol, and the first images (N, C, H, H), uint8, to look at."""

    values: dict[str, float]
    protocol: str
    shown: Tensor
    eval_s: float

    @property
    def fid(self) -> float:
        return self.values["fid"]


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
    """Score a model on the dataset of `extractor_job`, whose artifact holds the reference. The same on all ranks."""
    started = time.perf_counter()
    scorer = load_scorer(extractor_job, store, run.device)
    features, shown = _sample_features(model, scorer, spec, dataset=extractor_job.dataset, seed=seed, run=run, tail=tail)
    return Scores(
        values=compute_scores(scorer.reference, features, num_samples=spec.num_samples, seed=seed),
        protocol=spec.protocol(scorer.extractor_name, scorer.reference_name),
        shown=shown,
        eval_s=time.perf_counter() - started,
    )


def score_source(model: DiT, base: TrialSpec, store: Store, run: RunContext) -> Scores:
    """Score what a model knows of a base model's dataset under the null label, by the base's own protocol otherwise."""
    spec = replace(base.evaluation, unconditional=True)
    return score_model(model, spec, base.extractor, store=store, seed=base.seed, run=run)


def _sample_features(
    model: DiT, scorer: Scorer, spec: EvaluationSpec, *, dataset: str, seed: int, run: RunContext, tail: Tail | None
) -> tuple[Features, Tensor]:
    """Features of `num_samples` generated images, drawn by all workers together, and the first images."""
    model.eval()
    labels = labels_to_sample(load_dataset(dataset, "pool"), spec.num_samples).to(run.device)
    if spec.unconditional:
        labels = torch.full_like(labels, model.config.num_classes)
    mine: dict[int, tuple[Features, Tensor]] = {}
    for index, batch_labels in enumerate(labels.split(spec.batch_size)):
        if index % run.num_workers == run.rank:  # batches have their own streams: images do not depend on who draws them
            drawn = draw_batch(model, batch_labels, spec.sampler, seed=seed, index=index, tail=tail)
            images = scorer.to_images(drawn)
            features = extract_features(scorer.extractor, images, batch_size=EXTRACTED_AT_ONCE)
            mine[index] = (features, images[:NUM_SHOWN_SAMPLES].cpu())
    by_index = {index: pair for part in run.gather(mine) for index, pair in part.items()}
    ordered = [by_index[index] for index in sorted(by_index)]
    return Features.join([features for features, _ in ordered]), ordered[0][1]


def save_grid(images: Tensor, path: Path) -> None:
    """Write uint8 images (N, C, H, H) as one picture, enlarged to be seen."""
    grid = make_grid(images, nrow=10, padding=1, pad_value=128)  # (3, height, width)
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    enlarged = max(1, 64 // images.shape[-1])
    picture.resize((picture.width * enlarged, picture.height * enlarged), Image.Resampling.NEAREST).save(path)
