"""KID (Binkowski et al., arXiv 1801.01401, section 4) by torchmetrics."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from fine_core.evaluation.metrics.base import Metric
from fine_core.evaluation.metrics.precomputed import PrecomputedFeatures
from fine_core.evaluation.reference import Reference
from fine_core.evaluation.samples import Samples
from fine_core.randomness import stream_seed

SUBSETS = 50
SUBSET_SHARE = 0.5  # share of the smaller set; at most SUBSET_LIMIT rows
SUBSET_LIMIT = 1000


def kernel_distance(real: Tensor, fake: Tensor, *, seed: int) -> float:
    """Squared kernel distance of features (N, F) and (M, F), the mean over subsets that are drawn from `seed`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics warns that KID keeps all features in memory; ours are there already
        from torchmetrics.image.kid import KernelInceptionDistance

        subset_size = min(SUBSET_LIMIT, max(2, int(SUBSET_SHARE * min(len(real), len(fake)))))
        metric = KernelInceptionDistance(
            feature=PrecomputedFeatures(real.shape[1]),
            subsets=SUBSETS,
            subset_size=subset_size,
            sync_on_compute=False,
        )
    metric.update(real, real=True)
    metric.update(fake, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "kid"))
        mean, _ = metric.compute()
    return mean.item()


def _kid(reference: Reference, samples: Samples, *, seed: int) -> float:
    return kernel_distance(reference.features, samples.features, seed=seed)


KID = Metric(name="kid", label="KID", lower_is_better=True, needs=("features",), compute=_kid)
