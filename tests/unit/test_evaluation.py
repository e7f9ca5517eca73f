"""Scores against torchmetrics' own use and the closed formula; the extractor's accuracy and determinism."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from fine_core.checkpoints.native import CheckpointError
from fine_core.data.pixels import to_uint8
from fine_core.data.registry import labels_to_sample, load_dataset
from fine_core.evaluation.extractors.classifier import load_extractor, save_extractor, train_extractor
from fine_core.evaluation.features import Features, extract_features
from fine_core.evaluation.protocol import EvaluationSpec, Protocol
from fine_core.evaluation.reference import Moments, Reference
from fine_core.evaluation.scores import (
    compute_scores,
    fid_from_features,
    frechet_distance,
    inception_score,
    kid_from_features,
    precision_and_recall,
)
from fine_core.sampling.sampler import SamplerSpec


@pytest.fixture(scope="module")
def extractor():
    torch.set_num_threads(1)
    return train_extractor("digits", seed=0)


class PooledOnly(nn.Module):
    """As torchmetrics takes an extractor: it returns the features alone."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor, self.num_features = extractor, extractor.num_features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.extractor(images)["features"]


def features_of(pooled: torch.Tensor, **others: torch.Tensor) -> Features:
    return Features(**{"pooled": pooled, "spatial": None, "logits": None, **others})


def moments_of(features: torch.Tensor) -> Moments:
    return Moments(mean=features.double().mean(0), covariance=features.double().T.cov(), num_samples=len(features))


def test_identical_sets_have_fid_zero():
    features = torch.randn(300, 16)
    assert abs(fid_from_features(features, features)) < 1e-6


def test_fid_equals_torchmetrics_on_images_and_the_formula(extractor):
    model, _ = extractor
    real = to_uint8(load_dataset("digits", "train").images[:400])
    fake = to_uint8(load_dataset("digits", "held_out").images)
    metric = FrechetInceptionDistance(feature=PooledOnly(model))
    metric.update(real, real=True)
    metric.update(fake, real=False)
    real, fake = extract_features(model, real).pooled, extract_features(model, fake).pooled
    ours = fid_from_features(real, fake)
    assert ours == pytest.approx(metric.compute().item(), rel=1e-3)

    a, b = (features.double().numpy() for features in (real, fake))
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    formula = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert ours == pytest.approx(formula, rel=1e-2)


def test_scores_grow_with_the_distance_and_kid_is_seeded():
    torch.manual_seed(0)
    real, near, far = torch.randn(500, 8), torch.randn(500, 8), torch.randn(500, 8) + 2
    assert fid_from_features(real, near) < 0.2 < fid_from_features(real, far)
    assert abs(kid_from_features(real, near, seed=0)) < 0.1 < kid_from_features(real, far, seed=0)
    assert kid_from_features(real, far, seed=1) == kid_from_features(real, far, seed=1)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        fid_from_features(torch.randn(5, 3), torch.randn(1, 3))
    with pytest.raises(ValueError, match="num_samples is 3; scores need at least 4"):
        EvaluationSpec(num_samples=3, sampler=SamplerSpec())
    with pytest.raises(ValueError, match="precision and recall need more than 3 samples, got 9 real and 3 fake"):
        precision_and_recall(torch.randn(9, 3), torch.randn(3, 3))
    with pytest.raises(ValueError, match="Inception score needs at least 2 samples, got 1"):
        inception_score(torch.randn(1, 3), seed=0)
    reference = Reference(pooled=moments_of(torch.randn(20, 3)), spatial=None, features=None)
    with pytest.raises(ValueError, match="the protocol asks for 10 samples, 9 were drawn"):
        compute_scores(reference, features_of(torch.randn(9, 3)), num_samples=10, seed=0)


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
    assert fid_from_features(a, b) == pytest.approx(expected, rel=1e-4)
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
    assert inception_score(logits, seed=1) == inception_score(logits, seed=1) != inception_score(logits, seed=2)


def test_scores_are_those_that_the_inputs_allow():
    torch.manual_seed(0)
    real, fake, spatial, logits = torch.randn(60, 4), torch.randn(50, 4), torch.randn(50, 9), torch.randn(50, 3)
    reference = Reference(pooled=moments_of(real), spatial=None, features=None)
    scores = compute_scores(reference, features_of(fake, spatial=spatial), num_samples=50, seed=0)
    assert scores == {"fid": pytest.approx(fid_from_features(real, fake))}

    fakes = features_of(fake, spatial=spatial, logits=logits)
    reference = Reference(pooled=moments_of(real), spatial=moments_of(spatial + 1), features=real)
    scores = compute_scores(reference, fakes, num_samples=40, seed=3)
    precision, recall = precision_and_recall(real, fake)
    assert scores == {
        "fid": pytest.approx(fid_from_features(real, fake)),
        "sfid": pytest.approx(9),  # a shift by one in each of nine directions
        "kid": kid_from_features(real, fake, seed=3),
        "precision": precision,
        "recall": recall,
        "inception_score": inception_score(logits, seed=3),
    }


def test_features_come_in_batches_and_are_joined_in_order():
    class Network(nn.Module):
        def forward(self, images):
            x = images.double()
            return {"features": x.mean((2, 3)), "spatial": x[:, :, :2], "logits": x.amax((2, 3)) / 255}

    images = torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8)
    features = extract_features(Network(), images, batch_size=3)
    assert len(features) == 7 and features.pooled.dtype == features.spatial.dtype == features.logits.dtype == torch.float32
    assert torch.equal(features.spatial, images[:, :, :2].flatten(1).float())
    assert torch.allclose(features.pooled, images.float().mean((2, 3)))
    alone = extract_features(nn.Flatten(), images)
    assert alone.pooled.shape == (7, 48) and alone.spatial is None and alone.logits is None


@pytest.mark.parametrize(
    "output, problem",
    [
        ((torch.zeros(5, 2),), "the extractor returned tuple; it must return a tensor"),
        ({"pooled": torch.zeros(5, 2)}, "returned a dict of .'pooled'.; it must return a tensor"),
        (torch.zeros(4, 2), "'features' has shape .4, 2. for 5 images, not .5, numbers per image"),
        (torch.zeros(5, 2, 1, 1), "'features' has shape .5, 2, 1, 1. for 5 images"),
        (torch.full((5, 2), torch.nan), "'features' has numbers that are not finite"),
        (
            {"features": torch.zeros(5, 2), "spatial": torch.zeros(5)},
            "'spatial' has shape .5,. for 5 images, not .5, \\.\\.\\..",
        ),
        ({"features": torch.zeros(5, 2), "logits": [1.0]}, "'logits' is of type list"),
    ],
)
def test_other_outputs_of_an_extractor_are_refused_in_one_line(output, problem):
    class Network(nn.Module):
        def forward(self, images):
            return output

    with pytest.raises(ValueError, match=problem) as caught:
        extract_features(Network(), torch.zeros(5, 1, 2, 2, dtype=torch.uint8))
    assert "\n" not in str(caught.value)


def test_precision_and_recall_equal_their_definition_and_tell_what_is_wrong():
    torch.manual_seed(0)
    real, fake = torch.randn(60, 4), torch.randn(50, 4) + 0.5

    def share(points, centers) -> float:
        count = 0
        for point in points:
            for i, center in enumerate(centers):
                others = sorted((center - other).norm().item() for j, other in enumerate(centers) if j != i)
                if (point - center).norm().item() <= others[2]:  # the third nearest
                    count += 1
                    break
        return count / len(points)

    assert precision_and_recall(real, fake) == pytest.approx((share(fake, real), share(real, fake)))
    assert precision_and_recall(real, real) == (1.0, 1.0)
    many = torch.randn(3000, 4)  # more rows than are held at once
    collapsed = many[:5].repeat(40, 1) + 0.01 * torch.randn(200, 4)
    precision, recall = precision_and_recall(many, collapsed)
    assert precision > 0.9 and recall < 0.05, "good images of a few kinds"
    precision, recall = precision_and_recall(many, 3 * torch.randn(200, 4))
    assert precision < 0.6 and recall > 0.9, "all kinds, and many that are none"


def test_extractor_is_accurate_deterministic_and_named(extractor, tmp_path):
    model, accuracy = extractor
    assert accuracy >= 0.97
    again, _ = train_extractor("digits", seed=0)
    assert again.name == model.name
    save_extractor(model, tmp_path / "e.safetensors")
    assert load_extractor(tmp_path / "e.safetensors").name == model.name
    evaluation = EvaluationSpec(num_samples=10, sampler=SamplerSpec())
    protocol = str(Protocol.of(evaluation, extractor=model.name, reference="digits:pool"))
    for part in (model.name, "10 samples", "ddim 50 steps", "guidance 1", "digits:pool"):
        assert part in protocol


def test_damaged_extractor_is_refused(extractor, tmp_path):
    path = tmp_path / "e.safetensors"
    save_extractor(extractor[0], path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        load_extractor(path)


def test_digits_splits_share_nothing_and_are_complete():
    train, held_out = load_dataset("digits", "train"), load_dataset("digits", "held_out")
    assert len(train) + len(held_out) == 1797
    assert train.images.shape[1:] == (1, 8, 8) and train.images.min() == -1 and train.images.max() == 1
    assert held_out.labels.bincount().min() >= 34


def test_sampled_labels_follow_the_reference():
    reference = load_dataset("digits", "train")
    labels = labels_to_sample(reference, 2 * len(reference))
    assert torch.equal(labels.bincount(), 2 * reference.labels.bincount())
