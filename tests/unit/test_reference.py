"""References: streamed moments against torch.cov, files that come back as they were, and ADM's .npz in both directions."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from fine_core.checkpoints.native import CheckpointError, save_tensors
from fine_core.evaluation import adm
from fine_core.evaluation import reference as reference_module
from fine_core.evaluation.adm import reference_from_adm, save_samples_npz
from fine_core.evaluation.features import Features, extract_features
from fine_core.evaluation.metrics import DEFAULT_METRICS
from fine_core.evaluation.metrics.asked import compute_metrics, obtainable
from fine_core.evaluation.metrics.frechet import frechet_distance
from fine_core.evaluation.reference import (
    MomentsAccumulator,
    Reference,
    ReferenceBuilder,
)
from fine_core.evaluation.samples import SampleBuilder, fields_of


class Channels(nn.Module):
    """Features: the mean of each channel; spatial features: the pixels of the first row."""

    num_features = 3

    def forward(self, images):
        return {"features": images.float().mean((2, 3)), "spatial": images[:, :, 0]}


def features(num_images: int, *, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    pooled, spatial = (torch.randn(num_images, width, generator=generator) for width in (5, 8))
    return Features(pooled=pooled, spatial=spatial, logits=None)


def images(num_images: int) -> torch.Tensor:
    return torch.randint(0, 256, (num_images, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def nhwc(num_images: int) -> np.ndarray:
    return images(num_images).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("num_accumulators", [1, 2, 5])
@pytest.mark.parametrize("sizes", [(1000,), (1, 700, 2, 297), (333, 333, 0, 334)])
def test_moments_of_parts_are_those_of_the_whole_far_from_zero(sizes, num_accumulators):
    draws = 1e4 + torch.randn(1000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = draws * torch.tensor([1, 1, 1, 1e-2, 1e2, 1], dtype=torch.float64)
    draws[500:, 0] += 50  # the parts have different means
    accumulators = [MomentsAccumulator() for _ in range(num_accumulators)]  # some of them empty
    for index, part in enumerate(draws.split(sizes)):
        accumulators[-1 - index % num_accumulators].add(part)
    merged = MomentsAccumulator()
    for accumulator in accumulators:
        merged.merge(accumulator)
    moments = merged.moments()
    assert moments.num_samples == 1000 and moments.mean.dtype == moments.covariance.dtype == torch.float64
    torch.testing.assert_close(moments.mean, draws.mean(0), rtol=1e-12, atol=0)
    scale = draws.std(0)
    torch.testing.assert_close(moments.covariance / scale.outer(scale), draws.T.cov() / scale.outer(scale), rtol=0, atol=1e-9)


def test_a_single_sample_has_no_moments():
    builder = ReferenceBuilder()
    builder.add(features(1))
    with pytest.raises(ValueError, match="a covariance needs at least 2 samples, got 1"):
        builder.build()


def test_a_reference_keeps_the_first_features_and_comes_back_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_module, "MAX_KEPT_FEATURES", 10)
    builder = ReferenceBuilder()
    parts = [features(7, seed=1), features(7, seed=2), features(7, seed=3)]
    for part in parts:
        builder.add(part)
    built = builder.build()
    whole = Features.join(parts)
    assert torch.equal(built.features, whole.pooled[:10]) and built.pooled.num_samples == 21
    torch.testing.assert_close(built.spatial.covariance, whole.spatial.double().T.cov())

    built.save(tmp_path / "r.safetensors")
    loaded = Reference.load(tmp_path / "r.safetensors")
    assert torch.equal(loaded.features, built.features)
    for name in ("pooled", "spatial"):
        before, after = getattr(built, name), getattr(loaded, name)
        assert torch.equal(before.mean, after.mean) and torch.equal(before.covariance, after.covariance)
        assert before.num_samples == after.num_samples and after.covariance.dtype == torch.float64

    Reference(pooled=built.pooled, spatial=None, features=None).save(tmp_path / "small.safetensors")
    small = Reference.load(tmp_path / "small.safetensors")
    assert small.spatial is None and small.features is None and torch.equal(small.pooled.mean, built.pooled.mean)


def test_other_files_are_no_references(tmp_path):
    save_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, kind="dit", config={})
    with pytest.raises(CheckpointError, match="holds 'dit', not 'reference'"):
        Reference.load(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="no such file"):
        Reference.load(tmp_path / "none.safetensors")


def test_published_moments_give_the_closed_form(tmp_path):
    mean, variances = np.array([1.0, 2.0, 3.0]), np.array([4.0, 9.0, 0.0])
    np.savez(tmp_path / "ref.npz", mu=mean, sigma=np.diag(variances).astype(np.float32), mu_s=np.zeros(12), sigma_s=np.eye(12))
    reference = reference_from_adm(tmp_path / "ref.npz", Channels())
    assert reference.features is None and reference.pooled.num_samples == 0 and reference.spatial.mean.shape == (12,)
    drawn = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whitened = (drawn - drawn.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(drawn.T.cov())).T
    fakes = Features(pooled=whitened, spatial=None, logits=None)  # mean 0, covariance 1
    expected = (mean**2).sum() + ((np.sqrt(variances) - 1) ** 2).sum()
    builder = SampleBuilder({"pooled"})
    builder.add(fakes, batch=0)
    assert obtainable(DEFAULT_METRICS, of_samples=fields_of(fakes), of_reference=reference.fields) == ("fid",)
    scores = compute_metrics(("fid",), reference, SampleBuilder.join([builder]), num_samples=500, seed=0)
    assert scores == {"fid": pytest.approx(expected, rel=1e-6)}


def test_images_of_a_published_reference_give_the_features_and_what_moments_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(adm, "IMAGES_AT_ONCE", 5)
    monkeypatch.setattr(reference_module, "MAX_KEPT_FEATURES", 9)
    expected = extract_features(Channels(), images(12))
    np.savez(tmp_path / "images.npz", arr_0=nhwc(12), arr_1=np.arange(12))
    reference = reference_from_adm(tmp_path / "images.npz", Channels())
    assert torch.equal(reference.features, expected.pooled[:9]) and reference.pooled.num_samples == 12
    torch.testing.assert_close(reference.pooled.covariance, expected.pooled.double().T.cov())
    torch.testing.assert_close(reference.spatial.covariance, expected.spatial.double().T.cov())

    np.savez(tmp_path / "both.npz", arr_0=nhwc(12), mu=np.ones(3), sigma=np.eye(3), mu_s=np.ones(12), sigma_s=np.eye(12))
    both = reference_from_adm(tmp_path / "both.npz", Channels())
    assert torch.equal(both.features, expected.pooled[:9])
    assert torch.equal(both.pooled.covariance, torch.eye(3).double()) and torch.equal(
        both.spatial.mean, torch.ones(12).double()
    )


WITHOUT_SIGMA = "has only one of mu and sigma; moments are both"
NOT_FITTING = r"has mu float64 \(3,\) and sigma float64 \(4, 4\); moments are floats of shape \(F,\) and \(F, F\)"


@pytest.mark.parametrize(
    "arrays, problem",
    [
        ({"other": np.zeros(3)}, "has neither mu and sigma nor arr_0"),
        ({"mu": np.zeros(3)}, WITHOUT_SIGMA),
        ({"arr_0": nhwc(4), "sigma": np.eye(3)}, WITHOUT_SIGMA),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, NOT_FITTING),
        ({"mu": np.array(["a", "b", "c"]), "sigma": np.eye(3)}, "moments are floats"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "numbers in mu or sigma that are not finite"),
        ({"mu": np.zeros(4), "sigma": np.eye(4)}, "has moments of 4 features; the extractor has 3"),
        ({"mu": np.zeros(4), "sigma": np.eye(4), "arr_0": nhwc(4)}, "has moments of 4 features; the extractor has 3"),
        (
            {"mu": np.zeros(3), "sigma": np.eye(3), "mu_s": np.zeros(7), "sigma_s": np.eye(7), "arr_0": nhwc(4)},
            "has moments of 7 spatial features; the extractor has 12",
        ),
        (
            {"arr_0": nhwc(4).astype(np.float32)},
            r"has arr_0 float32 \(4, 4, 4, 3\); images are uint8 \(N, H, H, C\), at least 2",
        ),
        ({"arr_0": nhwc(1)}, "images are uint8"),
        ({"mu": np.array([None]), "sigma": np.eye(1)}, "not a readable .npz of plain arrays: Object arrays"),
    ],
)
def test_bad_published_references_are_refused_in_one_line(tmp_path, arrays, problem):
    np.savez(tmp_path / "ref.npz", **arrays)
    with pytest.raises(CheckpointError, match=problem) as caught:
        reference_from_adm(tmp_path / "ref.npz", Channels())
    assert "\n" not in str(caught.value)


def test_files_that_are_no_npz_are_refused_and_nothing_is_unpickled(tmp_path):
    path = tmp_path / "ref.npz"
    np.savez(tmp_path / "good.npz", mu=np.zeros(3), sigma=np.eye(3))
    good = (tmp_path / "good.npz").read_bytes()
    np.save(tmp_path / "single.npy", np.zeros(3))
    for content, problem in (
        (None, "no such file"),
        (b"", "not a readable .npz"),
        (good[:-30], "not a readable .npz"),
        (good.replace(np.eye(3).tobytes(), np.ones((3, 3)).tobytes()), "not a readable .npz of plain arrays: Bad CRC-32"),
        (pickle.dumps({"mu": 1}), "not a readable .npz"),
        ((tmp_path / "single.npy").read_bytes(), "is a single array, not an .npz"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=problem) as caught:
            reference_from_adm(path, Channels())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_written_as_adm_reads_them(tmp_path, channels):
    drawn = images(5)[:, :channels]
    save_samples_npz(tmp_path / "new" / "samples.npz", drawn)
    with np.load(tmp_path / "new" / "samples.npz", allow_pickle=False) as file:
        assert file.files == ["arr_0"] and file["arr_0"].dtype == np.uint8
        assert np.array_equal(file["arr_0"], drawn.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["samples.npz"]
    again = reference_from_adm(tmp_path / "new" / "samples.npz", Channels())
    builder = ReferenceBuilder()
    builder.add(extract_features(Channels(), drawn.expand(-1, 3, -1, -1)))
    assert frechet_distance(again.pooled, builder.build().pooled) == pytest.approx(0, abs=1e-3)


def test_samples_that_are_no_images_are_not_written(tmp_path):
    for wrong in (images(5).float(), images(5)[:, :2], images(5)[0]):
        with pytest.raises(ValueError, match="they must be uint8"):
            save_samples_npz(tmp_path / "samples.npz", wrong)
    assert not list(tmp_path.iterdir())


def test_class_probabilities_are_no_features():
    class Classifier(nn.Module):
        def forward(self, images):
            return images.float().flatten(1)[:, :5].softmax(dim=1)

    with pytest.raises(ValueError, match="returns class probabilities .* return the activations before its last layer"):
        extract_features(Classifier(), torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0.1, 1.0]])}, "sigma that is not symmetric"),
        ({"mu": np.zeros(2), "sigma": np.diag([1.0, -1.0])}, "negative variances in sigma"),
        ({"arr_0": np.zeros((4, 3, 8, 8), np.uint8)}, r"they are \(N, C, H, H\); images are \(N, H, H, C\)"),
        ({"arr_0": np.zeros((4, 8, 8, 4), np.uint8)}, "with 1 or 3 channels last"),
        ({"arr_0": np.zeros((4, 8, 8, 3), np.float32)}, "images are uint8"),
    ],
)
def test_a_reference_made_by_hand_is_checked(arrays, message, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(CheckpointError, match=message):
        reference_from_adm(tmp_path / "x.npz", nn.Identity())
