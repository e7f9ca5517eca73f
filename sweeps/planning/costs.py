"""What jobs will cost before anything is computed: multiply-accumulates, seconds on a core, parameters, bytes of files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import torch

from fine_core.checkpoints.native import config_to_json, predicted_file_bytes
from fine_core.dit import DiT, DiTConfig, count_macs, count_parameters
from fine_core.sampling.sampler import SamplerSpec
from trainables.jobs.transfer import delta_config
from trainables.methods import transfer_method
from trainables.specs.base import JobSpec, TrainingJobSpec
from trainables.specs.models import FineSpec, PointSpec
from trainables.specs.scores import ScoreSpec
from trainables.specs.tasks import Task
from trainables.specs.transfers import BankSpec, TransferSpec

# One core of a 2-core x86 machine, fitted to steps of DiTs with 2-6 blocks of 32-64 channels at batch 64.
CORE_MACS_PER_S = 32e9
PASS_OVERHEAD_S, BLOCK_OVERHEAD_S = 1.5e-3, 0.7e-3
EXTRACTOR_S = 5.0
ANY_SHA256 = "0" * 64  # of a file that is not there yet: all hashes have one length


def predicted_serve_bytes(point: PointSpec) -> int:
    """Bytes of the file that a point stores: all weights, or what a transfer trains."""
    if isinstance(point, TransferSpec):
        config = delta_config(point, base_sha256=ANY_SHA256)
        return predicted_file_bytes(_delta_shapes(point), kind="delta", config=config)
    return predicted_file_bytes(model_shapes(point.model), kind="dit", config=config_to_json(point.model))


def predicted_served_parameters(point: TransferSpec) -> int:
    """Parameters of the model that a transfer serves: the base's, and what a method adds that cannot be merged."""
    number = count_parameters(point.model)
    if transfer_method(point.method).mergeable:
        return number
    own = model_shapes(point.model)
    return number + sum(math.prod(shape) for name, shape in _delta_shapes(point).items() if name not in own)


def _delta_shapes(point: TransferSpec) -> dict[str, tuple[int, ...]]:
    rank = point.initialization.learngene.rank if isinstance(point.initialization, FineSpec) else None
    return _trained_shapes(point.method, point.model, point.gamma_span, rank)


@lru_cache(maxsize=1024)
def model_shapes(model: DiTConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in DiT(model).state_dict().items()}


@lru_cache(maxsize=1024)
def _trained_shapes(method: str, model: DiTConfig, gamma_span: float | None, rank: int | None) -> dict[str, tuple[int, ...]]:
    return transfer_method(method).trained_shapes(model, gamma_span=gamma_span, rank=rank)


def _sampled(job: JobSpec) -> tuple[int, SamplerSpec, int] | None:
    """(number, sampler, batch size) of the images that a job draws."""
    if isinstance(job, BankSpec):
        return job.num_images, job.sampler, job.batch_size
    if isinstance(job, ScoreSpec):
        return job.evaluation.num_samples, job.evaluation.sampler, job.evaluation.batch_size
    return None


def _training_steps(job: JobSpec) -> int:
    if isinstance(job, TrainingJobSpec):
        return job.training.steps
    return job.rung.step if isinstance(job, ScoreSpec) and job.rung is not None else 0


def _batch_size(job: JobSpec) -> int:
    if isinstance(job, TrainingJobSpec):
        return job.training.batch_size
    return job.rung.transfer.training.batch_size if isinstance(job, ScoreSpec) and job.rung is not None else 0


def total_macs(job: JobSpec) -> float:
    """Multiply-accumulates of a job: three passes per training image, and the sampler's passes per image drawn."""
    model: DiTConfig | None = getattr(job, "model", None)
    if model is None:
        return 0.0
    sampled = _sampled(job)
    drawn = 0 if sampled is None else sampled[0] * sampled[1].passes_per_sample
    return float(count_macs(model)) * (drawn + 3 * _batch_size(job) * _training_steps(job))


def scoring_macs(jobs: Iterable[JobSpec]) -> float:
    """Multiply-accumulates of drawing the images that are scored."""
    return sum(total_macs(job) for job in jobs if job.kind == "score")


def estimated_core_s(job: JobSpec) -> float:
    """Seconds on one CPU core like the one the constants were measured on; start-up not included."""
    if job.kind == "extractor":
        return EXTRACTOR_S
    model: DiTConfig | None = getattr(job, "model", None)
    if model is None:
        return 0.0
    sampled = _sampled(job)
    passes = 3 * _training_steps(job)
    if sampled is not None:
        number, sampler, batch = sampled
        passes += -(-number // batch) * sampler.passes_per_sample
    return total_macs(job) / CORE_MACS_PER_S + passes * (PASS_OVERHEAD_S + model.size.depth * BLOCK_OVERHEAD_S)


def task_core_s(task: Task) -> float:
    """The same for a task: its job and its scores."""
    return sum(map(estimated_core_s, task.jobs))
