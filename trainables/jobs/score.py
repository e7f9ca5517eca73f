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
from fine_core.dit import DiT, DiTConfig
from fine_core.evaluation.features import extract_features
from fine_core.evaluation.finite import check_finite_model, not_finite
from fine_core.evaluation.metrics.asked import compute_metrics, needs_of, obtainable
from fine_core.evaluation.protocol import EvaluationSpec, Protocol
from fine_core.evaluation.samples import SampleBuilder, fields_of
from fine_core.initializers.rebuilt import RebuiltDiT, merge
from fine_core.sampling.draw import Tail, draw_batch
from trainables.jobs.base import train_base
from trainables.jobs.context import JobContext, Result
from trainables.jobs.kind import JobKind
from trainables.jobs.scorer import Scorer, load_scorer
from trainables.jobs.transfer import load_base, tune
from trainables.jobs.work import Work
from trainables.specs.models import MilestoneSpec
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
        if job.rung is not None:  # a milestone is scored on the way of a training that is counted itself
            steps, batch_size = job.rung.step, job.rung.transfer.training.batch_size
        images = {"images": evaluation.num_samples, "images_at_once": evaluation.batch_size, "sampler": evaluation.sampler}
        return Work(model=job.model, steps=steps, batch_size=batch_size, **images)

    def run(self, job: ScoreSpec, context: JobContext) -> Result:
        """Score the model in memory, or the one from the store. At a rung the transfer is trained up to its step first.

        Raises NotFinite for a model or samples that are not finite, MetricUnavailable for a metric that cannot be had.
        """
        store, run = context.store, context.run
        served = context.served
        train_s: dict[str, float] = {}
        history: History = []
        if isinstance(job.scored, RungSpec):
            tuned = tune(job.scored.transfer, context, until_step=job.scored.step)
            served, history = tuned.served, tuned.progress.history
            train_s = {"train_s": tuned.progress.train_s}
        elif served is None and isinstance(job.scored, MilestoneSpec):
            trained, _ = train_base(job.scored.base, context, until_step=job.scored.step)
            served = merge(trained) if isinstance(trained, RebuiltDiT) else trained
        elif served is None:
            served = context.load(job.scored)
        started = time.perf_counter()
        model, tail = served.to(run.device), None
        check_finite_model(model)
        if job.replaced_steps and isinstance(job.scored, TransferSpec):
            tail = Tail(model=load_base(job.scored, store).to(run.device).eval(), steps=job.replaced_steps)
        scorer = load_scorer(job.extractor, store, run.device)
        names = _obtainable(job.evaluation, scorer, model.config, run.device)
        taken, shown = _take_samples(job, model, scorer, needs_of(names), run=run, tail=tail)
        parts = [part.to(run.device) for part in run.gather_to_first(taken.to("cpu"))]
        values: dict[str, float] = {}
        if run.rank == 0:
            samples = SampleBuilder.join(parts)
            values = compute_metrics(names, scorer.reference, samples, num_samples=job.evaluation.num_samples, seed=job.seed)
            save_grid(shown, context.folder / SAMPLES_FILE)
        protocol = Protocol.of(
            job.evaluation,
            extractor=scorer.extractor_name,
            reference=scorer.reference_name,
            replaced_steps=job.replaced_steps,
        )
        metrics = {**values, "eval_s": time.perf_counter() - started, **train_s}
        return Result(metrics=metrics, history=history, protocol=protocol)


def _obtainable(evaluation: EvaluationSpec, scorer: Scorer, config: DiTConfig, device: torch.device) -> tuple[str, ...]:
    """The metrics that can be had: known on all ranks before anything is drawn, from the features of noise."""
    shape = (1, config.in_channels, config.input_size, config.input_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    features = extract_features(scorer.extractor, scorer.to_images(noise))
    reference = scorer.reference
    return obtainable(
        evaluation.metrics,
        of_samples=fields_of(features),
        of_reference=reference.fields,
        num_images=min([evaluation.num_samples, *([] if reference.features is None else [len(reference.features)])]),
    )


def _take_samples(
    job: ScoreSpec, model: DiT, scorer: Scorer, fields: frozenset[str], *, run: RunContext, tail: Tail | None
) -> tuple[SampleBuilder, Tensor | None]:
    """This worker's share of the generated images, and on rank 0 the first images."""
    spec = job.evaluation
    model.eval()
    labels = labels_to_sample(load_dataset(job.dataset, "pool"), spec.num_samples).to(run.device)
    if spec.unconditional:
        labels = torch.full_like(labels, model.config.num_classes)
    taken, shown = SampleBuilder(fields), None
    problem: str | None = None
    for index, batch_labels in enumerate(labels.split(spec.batch_size)):
        if index % run.num_workers == run.rank:  # batches have their own streams: images do not depend on who draws them
            drawn = draw_batch(model, {LABEL: batch_labels}, spec.sampler, seed=job.seed, index=index, tail=tail)
            problem = not_finite(drawn)
            if problem is not None:
                break
            images = scorer.to_images(drawn)
            taken.add(extract_features(scorer.extractor, images, batch_size=EXTRACTED_AT_ONCE), batch=index)
            shown = images[:NUM_SHOWN_SAMPLES].cpu() if index == 0 else shown
    run.raise_together(problem)
    return taken, shown


def save_grid(images: Tensor, path: Path) -> None:
    """Write uint8 images (N, C, H, H) as one picture, enlarged to be seen."""
    grid = make_grid(images, nrow=10, padding=1, pad_value=128)  # (3, height, width)
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    enlarged = max(1, 64 // images.shape[-1])
    picture.resize((picture.width * enlarged, picture.height * enlarged), Image.Resampling.NEAREST).save(path)
