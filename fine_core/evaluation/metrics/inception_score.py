"""The Inception score (Salimans et al., arXiv 1606.03498, section 4) by torchmetrics."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from fine_core.evaluation.metrics.base import Metric
from fine_core.evaluation.metrics.precomputed import PrecomputedFeatures
from fine_core.evaluation.reference import Reference
from fine_core.evaluation.samples import Samples
from fine_core.randomness import stream_seed

SPLITS = 10  # as in the paper; fewer below 20 samples
SMALLEST_LOG = -700.0  # its exponential is still a float64 above zero


def inception_score(logits: Tensor, *, seed: int) -> float:
    """Exponential of the mean divergence of class probabilities from their mean; at most K.

    The mean over splits of the logits (N, K), which are shuffled from `seed`. Raises ValueError below two samples.
    """
    if len(logits) < 2:
        raise ValueError(f"the Inception score needs at least 2 samples, got {len(logits)}")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # torchmetrics warns about memory, torch about the deviation of a single split
        from torchmetrics.image.inception import InceptionScore

        metric = InceptionScore(
            feature=PrecomputedFeatures(logits.shape[1]),
            splits=min(SPLITS, len(logits) // 2),
            sync_on_compute=False,
        )
        logits = logits.double() - logits.double().amax(dim=1, keepdim=True)
        metric.update(logits.clamp(min=SMALLEST_LOG))  # torchmetrics' score is nan if a class has no probability at all
        torch.manual_seed(stream_seed(seed, "inception-score"))
        mean, _ = metric.compute()
    return mean.item()


def _inception_score(reference: Reference, samples: Samples, *, seed: int) -> float:
    return inception_score(samples.logits, seed=seed)


INCEPTION_SCORE = Metric(name="inception_score", label="IS", lower_is_better=False, needs=("logits",), compute=_inception_score)
