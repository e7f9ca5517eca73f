"""MIND (arXiv 2605.06797): a sliced Wasserstein distance of features, which ranks models with fewer samples than FID needs."""

from __future__ import annotations

import torch
from torch import Tensor

from fine_core.evaluation.metrics.base import Metric
from fine_core.evaluation.reference import Reference
from fine_core.evaluation.samples import Samples
from fine_core.randomness import stream_generator

NUM_PROJECTIONS = 1000
PROJECTED_AT_ONCE = 50  # directions whose projections are in memory at once


def mind(real: Tensor, fake: Tensor, *, seed: int) -> float:
    """3 F times the mean squared W2 distance of features (N, F) and (M, F) along random directions, drawn from `seed`.

    Sets that differ by a shift s have about 3 |s|^2.
    """
    num_features = real.shape[1]
    generator = stream_generator(seed, "mind")
    drawn = torch.randn(num_features, NUM_PROJECTIONS, generator=generator, dtype=torch.float64)
    directions = (drawn / drawn.norm(dim=0)).to(real.device)
    return 3 * num_features * squared_distances(real, fake, directions).mean().item()


def squared_distances(real: Tensor, fake: Tensor, directions: Tensor) -> Tensor:
    """Squared W2 distance (P,) of features (N, F) and (M, F) along every one of the directions (F, P), float64.

    In one dimension it is the mean squared difference of the quantile functions, whatever N and M are.
    """
    n, m = len(real), len(fake)
    # The quantile functions are steps that end at i / n and j / m: in whole numbers, at i m and j n of n m.
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique().to(real.device)
    shares = ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)
    in_real, in_fake = (ends - 1) // m, (ends - 1) // n
    real, fake = real.double(), fake.double()
    distances = []
    for some in directions.split(PROJECTED_AT_ONCE, dim=1):
        a, b = (real @ some).sort(dim=0).values, (fake @ some).sort(dim=0).values
        distances.append(shares @ (a[in_real] - b[in_fake]).square())
    return torch.cat(distances)


def _mind(reference: Reference, samples: Samples, *, seed: int) -> float:
    return mind(reference.features, samples.features, seed=seed)


MIND = Metric(name="mind", label="MIND", lower_is_better=True, needs=("features",), compute=_mind)
