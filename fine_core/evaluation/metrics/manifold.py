"""Metrics by balls around points, which reach to a point's k-th nearest other point of its own set.

Precision and recall: Kynkäänniemi et al., arXiv 1904.06991, section 2. Density and coverage: Naeem et al., arXiv 2002.09797,
equations 3 and 4; a ball is without its surface, as in the authors' code, so that equal sets have density 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fine_core.evaluation.metrics.base import Metric
from fine_core.evaluation.reference import Reference
from fine_core.evaluation.samples import Samples

NEIGHBOURS = 3  # k of precision and recall, as in the paper
DENSITY_NEIGHBOURS = 5  # k of density and coverage, as in the paper
CHUNK_ROWS = 1024  # rows of a distance matrix that are in memory at once
_KNOWN_RADII = WeakIdKeyDictionary()  # tensor -> neighbours -> radii


def share_within(points: Tensor, centers: Tensor, *, neighbours: int = NEIGHBOURS) -> float:
    """Share of points (M, F) that lie in a ball around at least one of the centers (N, F).

    It is the precision of fakes within reals, and the recall of reals within fakes. Raises ValueError for at most
    `neighbours` centers.
    """
    radii = _radii(centers, neighbours)
    return torch.cat([(rows <= radii).any(dim=1) for rows in _distances(points, centers)]).double().mean().item()


def density(real: Tensor, fake: Tensor, *, neighbours: int = DENSITY_NEIGHBOURS) -> float:
    """How many balls around reals (N, F) a fake of (M, F) lies in on average, over `neighbours`; 1 for equal sets.

    Raises ValueError for at most `neighbours` reals.
    """
    radii = _radii(real, neighbours)
    inside = sum(int((rows < radii).sum()) for rows in _distances(fake, real))
    return inside / (neighbours * len(fake))


def coverage(real: Tensor, fake: Tensor, *, neighbours: int = DENSITY_NEIGHBOURS) -> float:
    """Share of reals (N, F) with at least one fake of (M, F) in their ball.

    Raises ValueError for at most `neighbours` reals.
    """
    radii = _radii(real, neighbours)
    covered = torch.stack([(rows < radii).any(dim=0) for rows in _distances(fake, real)]).any(dim=0)
    return covered.double().mean().item()


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """Distance (N,) of every point to its `neighbours`-th nearest other point. Those of a set are computed once: a reference
    is compared with every model."""
    known = _KNOWN_RADII.setdefault(points, {})
    if neighbours not in known:
        known[neighbours] = _computed_radii(points, neighbours)
    return known[neighbours]


def _computed_radii(points: Tensor, neighbours: int) -> Tensor:
    if len(points) <= neighbours:
        raise ValueError(f"the {neighbours} nearest other points are of more than {neighbours} images, got {len(points)}")
    # + 1: the nearest point is the point itself.
    return torch.cat([rows.kthvalue(neighbours + 1).values for rows in _distances(points, points)])


def _distances(points: Tensor, others: Tensor) -> Iterator[Tensor]:
    """Distances of points (M, F) to others (N, F), some rows of (M, N) at a time."""
    points, others = points.double(), others.double()
    return (torch.cdist(rows, others) for rows in points.split(CHUNK_ROWS))


def _precision(reference: Reference, samples: Samples, *, seed: int) -> float:
    return share_within(samples.features, reference.features)


def _recall(reference: Reference, samples: Samples, *, seed: int) -> float:
    return share_within(reference.features, samples.features)


def _density(reference: Reference, samples: Samples, *, seed: int) -> float:
    return density(reference.features, samples.features)


def _coverage(reference: Reference, samples: Samples, *, seed: int) -> float:
    return coverage(reference.features, samples.features)


PRECISION = Metric(
    name="precision",
    label="precision",
    lower_is_better=False,
    needs=("features",),
    compute=_precision,
    min_images=NEIGHBOURS + 1,
)
RECALL = Metric(
    name="recall", label="recall", lower_is_better=False, needs=("features",), compute=_recall, min_images=NEIGHBOURS + 1
)
DENSITY = Metric(
    name="density",
    label="density",
    lower_is_better=False,
    needs=("features",),
    compute=_density,
    min_images=DENSITY_NEIGHBOURS + 1,
)
COVERAGE = Metric(
    name="coverage",
    label="coverage",
    lower_is_better=False,
    needs=("features",),
    compute=_coverage,
    min_images=DENSITY_NEIGHBOURS + 1,
)
