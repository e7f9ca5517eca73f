"""What jobs will cost before anything is computed: multiply-accumulates, seconds on a core, parameters, bytes of files."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from fine_core.checkpoints.native import config_to_json, predicted_file_bytes
from fine_core.dit import DiT, DiTConfig, count_macs, count_parameters
from fine_core.sampling.sampler import SamplerSpec
from trainables.methods import transfer_method
from trainables.specs.base import JobSpec, TrainingJobSpec
from trainables.specs.models import DecomposedLearngeneSpec, FineSpec, PointSpec, TrialSpec
from trainables.specs.scorers import ExtractorSpec
from trainables.specs.transfers import BankSpec, CurveSpec, RungSpec, TransferSpec

# One core of a 2-core x86 machine, fitted to steps of DiTs with 2-6 blocks of 32-64 channels at batch 64.
CORE_MACS_PER_S = 32e9
PASS_OVERHEAD_S, BLOCK_OVERHEAD_S = 1.5e-3, 0.7e-3
EXTRACTOR_S = 5.0


def predicted_serve_bytes(point: PointSpec) -> int:
    """Bytes of the file that a point stores: all weights, or what a transfer trains."""
    if isinstance(point, TrialSpec):
        return predicted_file_bytes(model_shapes(point.model), kind="dit", config=config_to_json(point.model))
    return predicted_file_bytes(_delta_shapes(point), kind="delta", config=point.delta_config)


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


def _sampled_images(job: JobSpec) -> list[tuple[int, SamplerSpec, int]]:
    """(number, sampler, batch size) of every set of images that a job draws."""
    match job:
        case TrialSpec():
            scored = [job.evaluation] * 2  # with labels, and under the null label
        case DecomposedLearngeneSpec():
            scored = [job.evaluation] * 3  # the given model, decomposed, and trained under the constraint
        case RungSpec():
            scored = [job.evaluation]
        case TransferSpec():
            scored = [job.evaluation, job.base.evaluation]  # on the target, and on the source for forgetting
        case BankSpec():
            return [(job.num_images, job.sampler, job.batch_size)]
        case CurveSpec():
            scored = [job.transfer.evaluation] * len(job.shares)
        case _:
            return []
    return [(spec.num_samples, spec.sampler, spec.batch_size) for spec in scored]


def total_macs(job: JobSpec, *, made: bool = False) -> float:
    """Multiply-accumulates of a job: three passes per training image, and the sampler's passes per image drawn.

    `made`: it is trained or drawn already, and only to be scored in another way.
    """
    if isinstance(job, ExtractorSpec) or (made and isinstance(job, BankSpec)):
        return 0.0
    images = _sampled_passes(job)
    if isinstance(job, TrainingJobSpec) and not made:
        images += 3 * job.training.batch_size * job.training.steps
    return float(count_macs(job.model)) * images


def _sampled_passes(job: JobSpec) -> int:
    """Forward passes of one image each for all the images that a job draws."""
    return sum(number * sampler.passes_per_sample for number, sampler, _ in _sampled_images(job))


def evaluation_macs(job: JobSpec) -> float:
    """Multiply-accumulates of drawing the images that a job is scored on."""
    if isinstance(job, ExtractorSpec | BankSpec):
        return 0.0
    return float(count_macs(job.model)) * _sampled_passes(job)


def estimated_core_s(job: JobSpec, *, made: bool = False) -> float:
    """Seconds on one CPU core like the one the constants were measured on; start-up not included. `made`: see total_macs."""
    if isinstance(job, ExtractorSpec):
        return EXTRACTOR_S
    if made and isinstance(job, BankSpec):
        return 0.0
    passes = sum(-(-number // batch) * sampler.passes_per_sample for number, sampler, batch in _sampled_images(job))
    if isinstance(job, TrainingJobSpec) and not made:
        passes += 3 * job.training.steps
    per_pass = PASS_OVERHEAD_S + job.model.size.depth * BLOCK_OVERHEAD_S
    return total_macs(job, made=made) / CORE_MACS_PER_S + passes * per_pass
