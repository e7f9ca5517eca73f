"""Scores against torchmetrics' own use and the closed formula; the extractor's accuracy and determinism."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance

from fine_core.checkpoints import CheckpointError
from fine_core.data import labels_to_sample, load_dataset
from fine_core.evaluation import EvaluationSpec, fid_from_features, kid_from_features, precision_and_recall
from fine_core.extractor import extract_features, load_extractor, save_extractor, train_extractor
from fine_core.sampling import SamplerSpec, to_uint8


@pytest.fixture(scope="module")
def extractor():
    torch.set_num_threads(1)
    return train_extractor("digits", seed=0)


def test_identical_sets_have_fid_zero():
    features = torch.randn(300, 16)
    assert abs(fid_from_features(features, features)) < 1e-6


def test_fid_equals_torchmetrics_on_images_and_the_formula(extractor):
    model, _ = extractor
    real = to_uint8(load_dataset("digits", "train").images[:400])
    fake = to_uint8(load_dataset("digits", "held_out").images)
    metric = FrechetInceptionDistance(feature=model)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    ours = fid_from_features(extract_features(model, real), extract_features(model, fake))
    assert ours == pytest.approx(metric.compute().item(), rel=1e-3)

    a, b = (extract_features(model, images).double().numpy() for images in (real, fake))
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
    assert fid_from_features(a, b) == pytest.approx(expected, rel=1e-4)


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
    protocol = EvaluationSpec(num_samples=10, sampler=SamplerSpec()).protocol("digits", model.name)
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
