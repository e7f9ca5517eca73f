"""Scores of generated images, from their features and a reference.

FID: Heusel et al., arXiv 1706.08500, equation 6. sFID, which is FID on spatial features: Nash et al., arXiv 2103.03841. KID:
Binkowski et al., arXiv 1801.01401, section 4. Precision and recall: Kynkäänniemi et al., arXiv 1904.06991, section 2.
Inception score: Salimans et al., arXiv 1606.03498, section 4. KID and the Inception score are torchmetrics'.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from fine_core.evaluation.features import Features
from fine_core.evaluation.protocol import NEIGHBOURS
from fine_core.evaluation.reference import Moments, MomentsAccumulator, Reference
from fine_core.randomness import stream_seed

KID_SUBSETS = 50
KID_SUBSET_SHARE = 0.5  # share of the smaller set; at most KID_SUBSET_LIMIT rows
KID_SUBSET_LIMIT = 1000
CHUNK_ROWS = 1024  # rows of a distance matrix that are in memory at once
INCEPTION_SPLITS = 10  # as in the paper; fewer below 20 samples
SMALLEST_LOG = -700.0  # its exponential is still a float64 above zero


class _PrecomputedFeatures(nn.Module):
    """Identity "extractor" for torchmetrics: features are extracted once and reused by every score."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


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


def fid_from_features(real: Tensor, fake: Tensor) -> float:
    """Fréchet distance between two feature sets (N, F) and (M, F). Raises ValueError below two samples each."""
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"FID needs at least 2 samples of each set, got {len(real)} real and {len(fake)} fake")
    return frechet_distance(_moments(real), _moments(fake))


def _moments(features: Tensor) -> Moments:
    accumulator = MomentsAccumulator()
    accumulator.add(features)
    return accumulator.moments()


def kid_from_features(real: Tensor, fake: Tensor, *, seed: int) -> float:
    """Kernel distance (mean over subsets) between two feature sets; the subsets are drawn from `seed`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics warns that KID keeps all features in memory; ours are there already
        from torchmetrics.image.kid import KernelInceptionDistance

        subset_size = min(KID_SUBSET_LIMIT, max(2, int(KID_SUBSET_SHARE * min(len(real), len(fake)))))
        metric = KernelInceptionDistance(
            feature=_PrecomputedFeatures(real.shape[1]),
            subsets=KID_SUBSETS,
            subset_size=subset_size,
            sync_on_compute=False,
        )
    metric.update(real, real=True)
    metric.update(fake, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "kid"))
        mean, _ = metric.compute()
    return mean.item()


def inception_score(logits: Tensor, *, seed: int) -> float:
    """Exponential of the mean divergence of class probabilities from their mean; higher is better, at most K.

    The mean over splits of the logits (N, K), which are shuffled from `seed`. Raises ValueError below two samples.
    """
    if len(logits) < 2:
        raise ValueError(f"the Inception score needs at least 2 samples, got {len(logits)}")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # torchmetrics warns about memory, torch about the deviation of a single split
        from torchmetrics.image.inception import InceptionScore

        metric = InceptionScore(
            feature=_PrecomputedFeatures(logits.shape[1]),
            splits=min(INCEPTION_SPLITS, len(logits) // 2),
            sync_on_compute=False,
        )
        logits = logits.double() - logits.double().amax(dim=1, keepdim=True)
        metric.update(logits.clamp(min=SMALLEST_LOG))  # torchmetrics' score is nan if a class has no probability at all
        torch.manual_seed(stream_seed(seed, "inception-score"))
        mean, _ = metric.compute()
    return mean.item()


def precision_and_recall(real: Tensor, fake: Tensor, *, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Share of fakes (M, F) within the manifold of the reals (N, F), and of reals within that of the fakes.

    A manifold is the union of balls around its points. A ball's radius is the distance to the `neighbours`-th nearest other
    point. Raises ValueError for sets of at most `neighbours` points.
    """
    if min(len(real), len(fake)) <= neighbours:
        raise ValueError(f"precision and recall need more than {neighbours} samples, got {len(real)} real and {len(fake)} fake")
    real, fake = real.double(), fake.double()
    return _share_within(real, fake, neighbours), _share_within(fake, real, neighbours)


def _share_within(centers: Tensor, points: Tensor, neighbours: int) -> float:
    """Share of points (M, F) that lie in a ball around at least one of the centers (N, F)."""
    # + 1: the nearest point of a center is the center itself.
    radii = torch.cat([torch.cdist(rows, centers).kthvalue(neighbours + 1).values for rows in centers.split(CHUNK_ROWS)])
    within = [(torch.cdist(rows, centers) <= radii).any(dim=1) for rows in points.split(CHUNK_ROWS)]
    return torch.cat(within).double().mean().item()


def compute_scores(reference: Reference, fakes: Features, *, num_samples: int, seed: int) -> dict[str, float]:
    """All scores that the inputs allow.

    Always `fid`; `sfid` if both have spatial features, `kid`, `precision` and `recall` if the reference kept features,
    `inception_score` if the extractor gives logits. Raises ValueError for fewer fakes than `num_samples`, the protocol's.
    """
    if len(fakes) < num_samples:
        raise ValueError(f"the protocol asks for {num_samples} samples, {len(fakes)} were drawn")
    scores = {"fid": frechet_distance(reference.pooled, _moments(fakes.pooled))}
    if reference.spatial is not None and fakes.spatial is not None:
        scores["sfid"] = frechet_distance(reference.spatial, _moments(fakes.spatial))
    if reference.features is not None:
        scores["kid"] = kid_from_features(reference.features, fakes.pooled, seed=seed)
        scores["precision"], scores["recall"] = precision_and_recall(reference.features, fakes.pooled)
    if fakes.logits is not None:
        scores["inception_score"] = inception_score(fakes.logits, seed=seed)
    return scores
