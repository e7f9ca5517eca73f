"""Features, the built-in extractor and FID on its features against torchmetrics; what protocols say."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from fine_core.checkpoints.native import CheckpointError
from fine_core.data.pixels import to_uint8
from fine_core.data.registry import labels_to_sample, load_dataset
from fine_core.evaluation.extractors.classifier import load_extractor, save_extractor, train_extractor
from fine_core.evaluation.features import extract_features
from fine_core.evaluation.metrics.frechet import frechet_distance
from fine_core.evaluation.protocol import EvaluationSpec, Protocol
from fine_core.evaluation.reference import Moments
from fine_core.sampling.sampler import SamplerSpec


def moments_of(features: torch.Tensor) -> Moments:
    return Moments(mean=features.double().mean(0), covariance=features.double().T.cov(), num_samples=len(features))


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


def test_fid_equals_torchmetrics_on_images_and_the_formula(extractor):
    model, _ = extractor
    real = to_uint8(load_dataset("digits", "train").images[:400])
    fake = to_uint8(load_dataset("digits", "held_out").images)
    metric = FrechetInceptionDistance(feature=PooledOnly(model))
    metric.update(real, real=True)
    metric.update(fake, real=False)
    real, fake = extract_features(model, real).pooled, extract_features(model, fake).pooled
    ours = frechet_distance(moments_of(real), moments_of(fake))
    assert ours == pytest.approx(metric.compute().item(), rel=1e-3)

    a, b = (features.double().numpy() for features in (real, fake))
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    formula = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert ours == pytest.approx(formula, rel=1e-2)


def test_an_evaluation_knows_its_metrics_in_whatever_order_they_are_named():
    named = EvaluationSpec(num_samples=9, sampler=SamplerSpec(), metrics=("mind", "fid", "mind"))
    assert named == EvaluationSpec(num_samples=9, sampler=SamplerSpec(), metrics=("fid", "mind"))
    with pytest.raises(ValueError, match="unknown metric 'fdd'; choose from fid, sfid, kid, .*mind"):
        EvaluationSpec(num_samples=9, sampler=SamplerSpec(), metrics=("fid", "fdd"))
    with pytest.raises(ValueError, match="metrics are kid; fid must be among them"):
        EvaluationSpec(num_samples=9, sampler=SamplerSpec(), metrics=("kid",))
    with pytest.raises(ValueError, match="num_samples is 3; scores need at least 4"):
        EvaluationSpec(num_samples=3, sampler=SamplerSpec())


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
