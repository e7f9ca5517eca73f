"""FID (Heusel et al., arXiv 1706.08500, equation 6), and sFID on spatial features (Nash et al., arXiv 2103.03841)."""

from __future__ import annotations

import torch

from fine_core.evaluation.metrics.base import Metric
from fine_core.evaluation.reference import Moments, Reference
from fine_core.evaluation.samples import Samples


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance between two Gaussians of these moments. Raises ValueError if their dimensions differ.

    The trace of (S1 S2)^(1/2) is that of (S1^(1/2) S2 S1^(1/2))^(1/2), whose eigenvalues are real, singular or not.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"these are moments of {len(a.mean)} and of {len(b.mean)} features; both must be of one extractor")
    variances, directions = torch.linalg.eigh(a.covariance)
    root = (directions * variances.clamp(min=0).sqrt()) @ directions.T
    squared_overlaps = torch.linalg.eigvalsh(root @ b.covariance @ root)
    overlap = squared_overlaps.clamp(min=0).sqrt().sum()  # rounding can make zeros negative
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return distance.item()


def _fid(reference: Reference, samples: Samples, *, seed: int) -> float:
    return frechet_distance(reference.pooled, samples.pooled)


def _sfid(reference: Reference, samples: Samples, *, seed: int) -> float:
    return frechet_distance(reference.spatial, samples.spatial)


FID = Metric(name="fid", label="FID", lower_is_better=True, needs=("pooled",), compute=_fid)
SFID = Metric(name="sfid", label="sFID", lower_is_better=True, needs=("spatial",), compute=_sfid)
