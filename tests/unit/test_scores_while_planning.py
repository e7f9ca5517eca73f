"""Extractors, references and small sets: what a score could not be computed of is said before anything is computed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fine_core.evaluation.adm import check_adm
from fine_core.evaluation.features import Features
from sweeps.size_grid import main
from tests.pictures import extractor_file, image_folder, picture

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


class Probabilities(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().flatten(2).mean(dim=2).softmax(dim=1)


class OneChannel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 2, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.float()).flatten(2).mean(dim=2)


class NotFinite(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().flatten(1) / 0


class Nothing(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().flatten(1)[:, :0]


class Squeezed(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().flatten(2).mean(dim=2).squeeze()


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images") / "pets", classes=2, per_class=6)


@pytest.fixture(scope="module")
def means(tmp_path_factory) -> Path:
    return extractor_file(tmp_path_factory.mktemp("extractor"))


def planned(images: Path, extractor: Path, *more: str):
    grid = ["--dataset", f"imagefolder:{images}", "--image-size", "8", "--extractor", str(extractor), "--dry-run"]
    return CliRunner().invoke(main, [*grid, "--transfer", "none", "--storage-path", str(images.parent / "store"), *more])


def refused(images: Path, extractor: Path, *more: str) -> str:
    answer = planned(images, extractor, *more)
    assert answer.exit_code == 2 and answer.output.startswith("error: ") and answer.output.count("\n") == 1, answer.output
    return answer.output


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Probabilities, "returns class probabilities"),
        (OneChannel, "cannot take images of 3 x 8 x 8 of pets-8: RuntimeError"),
        (NotFinite, "has numbers that are not finite"),
        (Nothing, "has no numbers at all; features are real numbers"),
        (Squeezed, "has shape (3,) for 1 images"),
    ],
)
def test_an_extractor_is_tried_on_the_images(module, message, images, tmp_path):
    torch.jit.script(module()).save(tmp_path / "x.pt")
    assert message in refused(images, tmp_path / "x.pt")


def test_a_pointer_in_place_of_what_scores_is_said(images, means, tmp_path):
    for name in ("x.pt", "x.npz"):
        (tmp_path / name).write_text(POINTER)
    assert "is a Git LFS pointer" in refused(images, tmp_path / "x.pt")
    assert "is a Git LFS pointer" in refused(images, means, "--reference", str(tmp_path / "x.npz"))


def covariance(*variances: float) -> np.ndarray:
    turned, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    return (turned * np.array(variances)) @ turned.T


REFERENCES = {
    "another extractor": ({"mu": np.zeros(5), "sigma": np.eye(5)}, "moments of 5 features; the extractor has 6"),
    "negative eigenvalue": ({"mu": np.zeros(6), "sigma": covariance(1, 2, 3, 4, 5, -0.5)}, "a negative eigenvalue"),
    "layout": ({"arr_0": np.zeros((9, 3, 8, 8), np.uint8)}, r"they are (N, C, H, H)"),
    "floats": ({"arr_0": np.zeros((9, 8, 8, 3), np.float32)}, "arr_0 float32"),
    "one image": ({"arr_0": np.zeros((1, 8, 8, 3), np.uint8)}, "at least 2"),
    "half of it": ({"mu": np.zeros(6)}, "only one of mu and sigma"),
    "no pixels": ({"arr_0": np.zeros((9, 0, 0, 3), np.uint8)}, "arr_0 uint8 (9, 0, 0, 3)"),
    "no moments": ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, "moments are floats of shape (F,) and (F, F)"),
    "nothing": ({"features": np.zeros((4, 6))}, "neither mu and sigma nor arr_0"),
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("option", ["--reference", "--target-reference"])
def test_a_reference_is_checked_while_planning(name, option, images, means, tmp_path):
    arrays, message = REFERENCES[name]
    np.savez(tmp_path / "x.npz", **arrays)
    target = ["--transfer", "full", "--target", f"imagefolder:{images.parent / 'pets'}", "--no-flip"]
    more = target if option == "--target-reference" else []
    assert message in refused(images, means, option, str(tmp_path / "x.npz"), *more)


def test_a_covariance_without_full_rank_is_one(images, means, tmp_path):
    np.savez(tmp_path / "x.npz", mu=np.zeros(6), sigma=covariance(1, 2, 3, 0, 0, 0).astype(np.float32))
    answer = planned(images, means, "--reference", str(tmp_path / "x.npz"))
    assert answer.exit_code == 0, answer.output


def test_images_of_a_reference_are_not_read_to_check_it(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((30_000, 4, 4, 3), np.uint8))
    found = check_adm(tmp_path / "x.npz", Features(pooled=torch.zeros(4, 6), spatial=None, logits=None))
    assert found == ({"pooled", "features"}, 10_000)


@pytest.mark.parametrize(("number", "lost"), [(2, "precision, recall"), (3, "precision, recall"), (4, None)])
def test_scores_that_few_images_cannot_give_are_left_out_and_it_is_said(number, lost, means, tmp_path):
    for index in range(number):
        picture(index).save(tmp_path / f"{index}.png")
    answer = planned(tmp_path, means)
    said = f"no {lost}, which need more than {number} images to compare with"
    assert answer.exit_code == 0 and (lost is None) == ("which need more than" not in answer.output), answer.output
    assert lost is None or said in answer.output.replace("\n", " "), answer.output
    if lost is not None:
        assert "precision needs at least 4 images" in refused(tmp_path, means, "--metrics", "fid,precision")


def test_one_image_has_no_fid(means, tmp_path):
    picture(0).save(tmp_path / "0.png")
    assert "fid needs at least 2 images on both sides, and one side has 1" in refused(tmp_path, means)


def test_few_samples_are_as_few_images(images, means):
    said = refused(images, means, "--num-samples", "5", "--metrics", "fid,density")
    assert "density needs at least 6 images on both sides, and one side has 5" in said


def test_code_that_ends_the_process_is_one_line(images, tmp_path):
    (tmp_path / "x.py").write_text("import sys\nsys.exit('bye')\n")
    assert "could not build an extractor: SystemExit: bye" in refused(images, tmp_path / "x.py")
    forward = "    def forward(self, images):\n        raise SystemExit(0)\n"
    (tmp_path / "y.py").write_text(f"import torch\nclass X(torch.nn.Module):\n{forward}def build():\n    return X()\n")
    assert "y.py cannot take images of 3 x 8 x 8 of pets-8: SystemExit" in refused(images, tmp_path / "y.py")
