"""Score a model: images drawn by all workers together, their features, and what a protocol makes of them."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from fine_core.data.registry import labels_to_sample, load_dataset
from fine_core.denoiser import LABEL
from fine_core.dit import DiT
from fine_core.evaluation.features import Features, extract_features
from fine_core.evaluation.finite import check_finite_model, not_finite
from fine_core.evaluation.protocol import EvaluationSpec, Protocol
from fine_core.evaluation.scores import compute_scores
from fine_core.sampling.draw import Tail, draw_batch
from trainables.jobs.context import JobContext, Result
from trainables.jobs.kind import JobKind
from trainables.jobs.scorer import Scorer, load_scorer
from trainables.jobs.transfer import load_base, tune
from trainables.jobs.work import Work
from trainables.specs.scores import ScoreSpec
from trainables.specs.transfers import RungSpec, TransferSpec
from trainables.storage.files import SAMPLES_FILE
from trainables.storage.record import History
from trainables.training.context import RunContext

NUM_SHOWN_SAMPLES = 40
EXTRACTED_AT_ONCE = 64  # images: an extractor may be as large as Inception


class ScoreKind(JobKind):
    name = "score"
    is_score = True

    def stage(self, job: ScoreSpec) -> str:
        """Scores alone are of curves, or of the given model."""
        return "curve" if job.replaced_steps else "decompose"

    def work(self, job: ScoreSpec) -> Work:
        evaluation, steps, batch_size = job.evaluation, 0, 0
        if job.rung is not None:
            steps, batch_size = job.rung.step, job.rung.transfer.training.batch_size
        images = {"images": evaluation.num_samples, "images_at_once": evaluation.batch_size, "sampler": evaluation.sampler}
        return Work(model=job.model, steps=steps, batch_size=batch_size, **images)

    def run(self, job: ScoreSpec, context: JobContext) -> Result:
        """Score the model in memory, or the one from the store. At a rung the transfer is trained up to its step first.

        Raises NotFinite for a model or samples that are not finite.
        """
        store, run = context.store, context.run
        served = context.served
        train_s: dict[str, float] = {}
        history: History = []
        if isinstance(job.scored, RungSpec):
            tuned = tune(job.scored.transfer, context, until_step=job.scored.step)
            served, history = tuned.served, tuned.progress.history
            train_s = {"train_s": tuned.progress.train_s}
        elif served is None:
            served = context.load(job.scored)
        started = time.perf_counter()
        model, tail = served.to(run.device), None
        check_finite_model(model)
        if job.replaced_steps and isinstance(job.scored, TransferSpec):
            tail = Tail(model=load_base(job.scored, store).to(run.device).eval(), steps=job.replaced_steps)
        scorer = load_scorer(job.extractor, store, run.device)
        features, shown = _sample_features(
            model, scorer, job.evaluation, dataset=job.dataset, seed=job.seed, run=run, tail=tail
        )
        values: dict[str, float] = {}
        if run.rank == 0:
            values = compute_scores(scorer.reference, features, num_samples=job.evaluation.num_samples, seed=job.seed)
            save_grid(shown, context.folder / SAMPLES_FILE)
        protocol = Protocol.of(
            job.evaluation,
            extractor=scorer.extractor_name,
            reference=scorer.reference_name,
            replaced_steps=job.replaced_steps,
        )
        metrics = {**values, "eval_s": time.perf_counter() - started, **train_s}
        return Result(metrics=metrics, history=history, protocol=protocol)


def _sample_features(
    model: DiT, scorer: Scorer, spec: EvaluationSpec, *, dataset: str, seed: int, run: RunContext, tail: Tail | None
) -> tuple[Features, Tensor]:
    """Features of `num_samples` generated images, drawn by all workers together, and the first images."""
    model.eval()
    labels = labels_to_sample(load_dataset(dataset, "pool"), spec.num_samples).to(run.device)
    if spec.unconditional:
        labels = torch.full_like(labels, model.config.num_classes)
    mine: dict[int, tuple[Features, Tensor]] = {}
    problem: str | None = None
    for index, batch_labels in enumerate(labels.split(spec.batch_size)):
        if index % run.num_workers == run.rank:  # batches have their own streams: images do not depend on who draws them
            drawn = draw_batch(model, {LABEL: batch_labels}, spec.sampler, seed=seed, index=index, tail=tail)
            problem = not_finite(drawn)
            if problem is not None:
                break
            images = scorer.to_images(drawn)
            features = extract_features(scorer.extractor, images, batch_size=EXTRACTED_AT_ONCE)
            mine[index] = (features, images[:NUM_SHOWN_SAMPLES].cpu())
    run.raise_together(problem)
    by_index = {index: pair for part in run.gather(mine) for index, pair in part.items()}
    ordered = [by_index[index] for index in sorted(by_index)]
    return Features.join([features for features, _ in ordered]), ordered[0][1]


def save_grid(images: Tensor, path: Path) -> None:
    """Write uint8 images (N, C, H, H) as one picture, enlarged to be seen."""
    grid = make_grid(images, nrow=10, padding=1, pad_value=128)  # (3, height, width)
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    enlarged = max(1, 64 // images.shape[-1])
    picture.resize((picture.width * enlarged, picture.height * enlarged), Image.Resampling.NEAREST).save(path)
