"""FID and KID through torchmetrics on precomputed features, precision and recall, and the protocol without which a score
does not exist.

FID: Heusel et al., arXiv 1706.08500, equation 6. KID: Binkowski et al., arXiv 1801.01401, section 4. Precision and recall:
Kynkäänniemi et al., arXiv 1904.06991, section 2.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fine_core.randomness import stream_seed
from fine_core.sampling import SamplerSpec

KID_SUBSETS = 50
KID_SUBSET_SHARE = 0.5  # of the smaller set, at most KID_SUBSET_LIMIT
KID_SUBSET_LIMIT = 1000
NEIGHBOURS = 3  # of the manifolds of precision and recall, as in the paper
CHUNK_ROWS = 1024  # of a distance matrix that is held at once


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec:
    """How a model is scored: `num_samples` images drawn by `sampler`, against one split of the dataset.

    The images have the labels of the reference, or the null label if `unconditional`.
    """

    num_samples: int
    sampler: SamplerSpec
    reference_split: str = "pool"
    unconditional: bool = False
    batch_size: int = 250

    def __post_init__(self) -> None:
        if self.num_samples <= NEIGHBOURS:
            raise ValueError(f"num_samples is {self.num_samples}; scores need at least {NEIGHBOURS + 1}")

    def protocol(self, dataset: str, extractor_name: str) -> str:
        """One line that names how a score was obtained. Equal protocols make comparable scores."""
        s = self.sampler
        return (
            f"{extractor_name} | {self.num_samples} samples | {s.sampler} {s.sampling_steps} steps"
            f" | guidance {s.guidance_scale:g}{' | null label' if self.unconditional else ''}"
            f" | reference {dataset}:{self.reference_split}"
        )


class _PrecomputedFeatures(nn.Module):
    """Hands features through, so that one extraction serves every torchmetrics score."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def fid_from_features(real: Tensor, fake: Tensor) -> float:
    """Fréchet distance between two feature sets (N, F) and (M, F). Raises ValueError below two samples each."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(len(real), len(fake)) < 2:
        raise ValueError(f"FID needs at least 2 samples of each set, got {len(real)} real and {len(fake)} fake")
    metric = FrechetInceptionDistance(feature=_PrecomputedFeatures(real.shape[1]), sync_on_compute=False)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    return metric.compute().item()


def kid_from_features(real: Tensor, fake: Tensor, *, seed: int) -> float:
    """Kernel distance (mean over subsets) between two feature sets; the subsets are drawn from `seed`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics warns that KID keeps all features, which ours are already
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


def precision_and_recall(real: Tensor, fake: Tensor, *, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Share of fakes (M, F) within the manifold of the reals (N, F), and of reals within that of the fakes.

    A manifold is the union of balls around its points, each out to the `neighbours`-th nearest other. Raises ValueError for
    sets that are not larger than that.
    """
    if min(len(real), len(fake)) <= neighbours:
        raise ValueError(f"precision and recall need more than {neighbours} samples, got {len(real)} real and {len(fake)} fake")
    real, fake = real.double(), fake.double()
    return _share_within(real, fake, neighbours), _share_within(fake, real, neighbours)


def _share_within(centers: Tensor, points: Tensor, neighbours: int) -> float:
    """Share of points (M, F) that lie in a ball around at least one of the centers (N, F)."""
    # The nearest of all is the center itself.
    radii = torch.cat([torch.cdist(rows, centers).kthvalue(neighbours + 1).values for rows in centers.split(CHUNK_ROWS)])
    within = [(torch.cdist(rows, centers) <= radii).any(dim=1) for rows in points.split(CHUNK_ROWS)]
    return torch.cat(within).double().mean().item()
