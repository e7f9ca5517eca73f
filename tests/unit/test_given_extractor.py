"""Extractors that a user brings: TorchScript, Python code, and Inception with weights of its architecture."""

import pickle
import sys
import warnings

import pytest
import torch
from torch import nn

from fine_core.checkpoints.native import CheckpointError
from fine_core.evaluation.extractors import given as given_extractor
from fine_core.evaluation.extractors.given import extractor_format, load_given_extractor
from fine_core.evaluation.features import extract_features
from fine_core.files import sha256_of

PYTHON_EXTRACTOR = """
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Settings:
    width: int = 4


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(12, Settings().width)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, images):
        return {"features": self.dropout(self.linear(images.float().flatten(1)))}


def build():
    return Network()
"""


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.dropout(self.linear(images.float().flatten(1)))
        return {"features": features, "logits": features[:, :2]}


def images(num_images: int, *, channels: int = 3, size: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_images, channels, size, size), dtype=torch.uint8, generator=generator)


def save_torchscript(path) -> Scripted:
    model = Scripted()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it
        torch.jit.save(torch.jit.script(model), path)
    return model.eval()


def refused(path, *, format: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_given_extractor(path, format=format)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_suffix_says_what_a_file_is():
    assert extractor_format("a/b.py") == "python"
    assert {extractor_format(f"x{suffix}") for suffix in (".pt", ".pth", ".ts", ".jit")} == {"torchscript"}
    with pytest.raises(ValueError, match="x.onnx has suffix '.onnx'; an extractor is one of .py, .pt, .pth, .ts, .jit"):
        extractor_format("x.onnx")
    with pytest.raises(ValueError, match="unknown extractor format 'onnx'; choose one of torchscript, python, inception"):
        load_given_extractor("x.onnx", format="onnx")


@pytest.mark.parametrize("format", ["torchscript", "python", "inception"])
def test_a_missing_file_is_refused(tmp_path, format):
    assert "no such file" in refused(tmp_path / "none", format=format)


def test_a_torchscript_file_is_an_extractor_for_evaluation(tmp_path):
    model = save_torchscript(tmp_path / "e.pt")
    loaded = load_given_extractor(tmp_path / "e.pt", format="torchscript")
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    features = extract_features(loaded, images(5))
    torch.testing.assert_close(features.pooled, model(images(5))["features"].detach())
    assert torch.equal(features.logits, features.pooled[:, :2]) and features.spatial is None


def test_files_that_are_no_torchscript_are_refused(tmp_path):
    path = tmp_path / "e.pt"
    save_torchscript(path)
    whole = path.read_bytes()
    torch.save({"x": torch.zeros(2)}, tmp_path / "state.pt")
    for content in (pickle.dumps({"a": 1}), whole[:-200], b"", (tmp_path / "state.pt").read_bytes()):
        path.write_bytes(content)
        assert "e.pt is not a TorchScript file, which torch.jit.save writes: Pytorch" in refused(path, format="torchscript")


def test_a_python_file_is_executed_and_builds_an_extractor(tmp_path):
    (tmp_path / "mine.py").write_text(PYTHON_EXTRACTOR)
    loaded = load_given_extractor(tmp_path / "mine.py", format="python")
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert extract_features(loaded, images(5)).pooled.shape == (5, 4)


@pytest.mark.parametrize(
    "code, problem",
    [
        ("x = 1", r"must define build\(\) -> nn.Module; there is no build\(\)"),
        ("def build(): return 3", r"must define build\(\) -> nn.Module; build\(\) returns int"),
        ("import nothing_of_this_name", "could not build an extractor: ModuleNotFoundError: No module named"),
        ("def build(): raise KeyError", "could not build an extractor: KeyError: "),
        ("def build(", "could not build an extractor: SyntaxError"),
    ],
)
def test_python_files_that_build_no_extractor_are_refused(tmp_path, code, problem):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(CheckpointError, match=problem):
        load_given_extractor(tmp_path / "mine.py", format="python")


def test_inception_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "weights.pth").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ValueError, match=r"needs torch-fidelity: pip install -c constraints.txt -e '.\[inception\]'"):
        load_given_extractor(tmp_path / "weights.pth", format="inception")


class TestInception:
    """The network of torch-fidelity with random weights, which are as large as the published ones."""

    @pytest.fixture(scope="class")
    def library(self):
        return pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    @pytest.fixture(scope="class")
    def weights(self, library, tmp_path_factory):
        """A file as torch-fidelity publishes it: a plain dict, without batch norm's counters, in the format before zip."""
        torch.set_num_threads(1)
        torch.manual_seed(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "load_state_dict_from_url", lambda *args, **kwargs: {})
            patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None)
            network = library.FeatureExtractorInceptionV3("random", ["2048"])
        path = tmp_path_factory.mktemp("inception") / "weights.pth"
        tensors = {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
        return path

    @pytest.fixture(autouse=True)
    def no_downloads(self, library, monkeypatch):
        def refuse(*args, **kwargs):
            raise AssertionError("nothing is downloaded")

        monkeypatch.setattr(library, "load_state_dict_from_url", refuse)

    def test_outputs_are_what_fid_sfid_and_inception_scores_need(self, library, weights, monkeypatch):
        monkeypatch.setattr(given_extractor, "INCEPTION_SHA256_PREFIX", sha256_of(weights)[:8])
        extractor = load_given_extractor(weights, format="inception")
        assert not extractor.training and not any(p.requires_grad for p in extractor.parameters())
        drawn = images(2, size=32)
        features = extract_features(extractor, drawn)
        assert features.pooled.shape == (2, 2048) == (2, extractor.num_features)
        assert features.logits.shape == (2, 1008) and features.spatial.shape == (2, 2023)

        branch = []
        extractor.network.Mixed_6d.branch1x1.bn.register_forward_hook(lambda *call: branch.append(call[-1].clone()))
        (pooled,) = self.with_features(library, weights, ["2048"])(drawn)
        torch.testing.assert_close(features.pooled, pooled)
        torch.testing.assert_close(features.logits, pooled @ extractor.network.fc.weight.T)
        extractor(drawn)
        relu = branch[0].relu()  # (2, 192, 17, 17)
        torch.testing.assert_close(features.spatial.view(2, 17, 17, 7)[:, 3, 11, 5], relu[:, 5, 3, 11])
        torch.testing.assert_close(features.spatial.view(2, 17, 17, 7), relu[:, :7].movedim(1, -1))

        gray = extract_features(extractor, drawn[:, :1])
        assert torch.equal(gray.pooled, extract_features(extractor, drawn[:, :1].repeat(1, 3, 1, 1)).pooled)

    @staticmethod
    def with_features(library, weights, names):
        return library.FeatureExtractorInceptionV3("theirs", names, feature_extractor_weights_path=weights)

    def test_other_weights_are_refused(self, weights):
        found = sha256_of(weights)[:8]
        assert refused(weights, format="inception") == f"{weights} has a sha256 of {found}..., expected 6726825d..."

    def test_files_of_the_right_hash_are_still_read_without_executing_them(self, tmp_path, monkeypatch):
        path = tmp_path / "weights.pth"
        torch.save({"fc.weight": torch.zeros(3)}, path)
        monkeypatch.setattr(given_extractor, "INCEPTION_SHA256_PREFIX", sha256_of(path)[:8])
        assert "does not fit Inception" in refused(path, format="inception")
        torch.save({"code": nn.Linear(1, 1)}, path)
        monkeypatch.setattr(given_extractor, "INCEPTION_SHA256_PREFIX", sha256_of(path)[:8])
        assert "is refused" in refused(path, format="inception")
