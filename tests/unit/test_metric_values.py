"""Metrics against their definitions in loops, closed forms, scipy and torchmetrics."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torchmetrics.image.inception import InceptionScore

from fine_core.evaluation.metrics.frechet import frechet_distance
from fine_core.evaluation.metrics.inception_score import inception_score
from fine_core.evaluation.metrics.manifold import coverage, density, share_within
from fine_core.evaluation.metrics.mind import mind, squared_distances
from fine_core.evaluation.reference import Moments


def moments_of(features: torch.Tensor) -> Moments:
    return Moments(mean=features.double().mean(0), covariance=features.double().T.cov(), num_samples=len(features))


@pytest.mark.parametrize("spread", [1.0, 1e-6, 0.0])
def test_fid_of_nearly_singular_covariances_is_that_of_the_closed_form(spread):
    """Half of the directions have almost no variance, or none: a matrix square root by iteration fails on them."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.cat([torch.linspace(0.5, 2, 8), torch.full((8,), spread)]).double()
    draws = torch.randn(4000, 16, generator=generator, dtype=torch.float64)
    whitened = (draws - draws.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(draws.T.cov())).T
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.float64)).Q
    shift = torch.ones(16, dtype=torch.float64) / 4
    a, b = (whitened * scales) @ rotation, (whitened * 2 * scales + shift) @ rotation  # covariances that commute
    expected = (shift @ shift + scales @ scales).item()  # |m|^2 + sum (2 s - s)^2
    assert frechet_distance(moments_of(a), moments_of(b)) == pytest.approx(expected, rel=1e-4)
    assert abs(frechet_distance(moments_of(a), moments_of(a))) < 1e-6


def test_the_distance_of_covariances_of_fewer_samples_than_dimensions_is_that_of_their_singular_values():
    torch.manual_seed(0)
    a, b = torch.randn(20, 64).double(), torch.randn(30, 64).double() + 1
    centered = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b)]
    overlap = torch.linalg.svdvals(centered[0] @ centered[1].T).sum()  # tr (S1 S2)^(1/2) without a matrix root
    expected = (a.mean(0) - b.mean(0)).square().sum() + sum(x.square().sum() for x in centered) - 2 * overlap
    assert frechet_distance(moments_of(a), moments_of(b)) == pytest.approx(expected.item(), rel=1e-6)


def test_moments_of_different_extractors_are_refused():
    with pytest.raises(ValueError, match="moments of 3 and of 4 features"):
        frechet_distance(moments_of(torch.randn(9, 3)), moments_of(torch.randn(9, 4)))


def radius(points: torch.Tensor, i: int, k: int) -> float:
    """Distance of point i to the k-th nearest other one, in a loop."""
    return sorted((points[i] - other).norm().item() for j, other in enumerate(points) if j != i)[k - 1]


def test_precision_and_recall_equal_their_definition_and_tell_what_is_wrong():
    torch.manual_seed(0)
    real, fake = torch.randn(60, 4), torch.randn(50, 4) + 0.5

    def share(points, centers) -> float:
        radii = [radius(centers, i, 3) for i in range(len(centers))]
        within = [any((p - c).norm().item() <= r for c, r in zip(centers, radii, strict=True)) for p in points]
        return sum(within) / len(points)

    assert share_within(fake, real) == pytest.approx(share(fake, real))
    assert share_within(real, fake) == pytest.approx(share(real, fake))
    many = torch.randn(3000, 4)  # more rows than are held at once
    collapsed = many[:5].repeat(40, 1) + 0.01 * torch.randn(200, 4)
    assert share_within(collapsed, many) > 0.9 and share_within(many, collapsed) < 0.05, "good images of a few kinds"
    wide = 3 * torch.randn(200, 4)
    assert share_within(wide, many) < 0.6 and share_within(many, wide) > 0.9, "all kinds, and many that are none"


def test_density_and_coverage_equal_their_definition_and_tell_what_is_wrong():
    torch.manual_seed(0)
    real, fake = torch.randn(40, 4), torch.randn(30, 4) + 0.5
    balls = [(center, radius(real, i, 5)) for i, center in enumerate(real)]
    inside = [[(point - center).norm().item() < r for center, r in balls] for point in fake]  # (M, N)
    assert density(real, fake) == pytest.approx(sum(map(sum, inside)) / (5 * len(fake)))
    assert coverage(real, fake) == pytest.approx(sum(map(any, zip(*inside, strict=True))) / len(real))
    many = torch.randn(3000, 4)
    assert density(many, torch.randn(2000, 4)) == pytest.approx(1, abs=0.1), "of one distribution"
    # An outlier among the reals has a large ball: it makes fakes around it precise, but not dense.
    outlier = torch.cat([many[:500], torch.full((1, 4), 9.0)])
    around = torch.full((1, 4), 7.0) + 0.1 * torch.randn(100, 4)
    assert share_within(around, outlier) == 1 and density(outlier, around) < 0.3 and coverage(outlier, around) < 0.01


@pytest.mark.parametrize(("n", "m"), [(12, 12), (6, 9), (7, 5), (1, 4)])
def test_distances_along_directions_are_those_of_sets_repeated_to_one_size(n, m):
    torch.manual_seed(0)
    real, fake, directions = torch.randn(n, 3).double(), torch.randn(m, 3).double() + 1, torch.randn(3, 60).double()
    expected = []
    for direction in directions.T:
        a = sorted(value for point in real for value in [float(point @ direction)] * m)
        b = sorted(value for point in fake for value in [float(point @ direction)] * n)
        expected.append(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / (n * m))
    assert squared_distances(real, fake, directions).tolist() == pytest.approx(expected)
    if n == m:  # the best of all matchings
        costs = ((real @ directions[:, 0])[:, None] - (fake @ directions[:, 0])[None]).square().numpy()
        assert costs[linear_sum_assignment(costs)].mean() == pytest.approx(expected[0])


def test_mind_is_known_for_shifted_sets_and_does_not_see_rotations():
    torch.manual_seed(0)
    real, shift = torch.randn(200, 16), torch.randn(16)
    assert mind(real, real + shift, seed=0) == pytest.approx(3 * shift.square().sum().item(), rel=0.1)
    rotation = torch.linalg.qr(torch.randn(16, 16)).Q
    fake = 2 * torch.randn(150, 16)
    assert mind(real @ rotation, fake @ rotation, seed=1) == pytest.approx(mind(real, fake, seed=1), rel=0.1)


def test_inception_score_is_that_of_its_formula_and_of_torchmetrics():
    certain = 5000 * torch.eye(4).repeat(25, 1)  # probabilities underflow
    assert inception_score(torch.zeros(100, 4), seed=0) == pytest.approx(1), "every class as likely in every image"
    assert 3 < inception_score(certain, seed=0) <= 4, "all classes without doubt, if not as often in every split"
    assert inception_score(certain[::4], seed=0) == pytest.approx(1), "one class without doubt"
    assert inception_score(torch.tensor([[9.0, -9], [-9, 9], [9, -9]]), seed=0) == pytest.approx(np.exp(np.log(27 / 4) / 3))

    logits = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    metric = InceptionScore(feature=nn.Identity(), splits=10)
    metric.update(logits)
    theirs, spread = (value.item() for value in metric.compute())
    assert abs(inception_score(logits, seed=0) - theirs) < spread, "other splits"


def test_sets_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="the 3 nearest other points are of more than 3 images, got 3"):
        share_within(torch.randn(9, 3), torch.randn(3, 3))
    with pytest.raises(ValueError, match="the 5 nearest other points are of more than 5 images, got 5"):
        density(torch.randn(5, 3), torch.randn(9, 3))
    with pytest.raises(ValueError, match="Inception score needs at least 2 samples, got 1"):
        inception_score(torch.randn(1, 3), seed=0)
