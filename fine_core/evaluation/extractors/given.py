"""Feature extractors given by the user: a TorchScript file, Python code, or the weights of FID's Inception network.

They take uint8 images (N, C, H, H); `fine_core.evaluation.features.extract_features` says what they may return.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from fine_core.checkpoints.native import CheckpointError, check_is_no_pointer
from fine_core.checkpoints.state_dict import read_state_dict
from fine_core.files import sha256_of

FORMATS = ("torchscript", "python", "inception")
SUFFIXES = {".py": "python", ".pt": "torchscript", ".pth": "torchscript", ".ts": "torchscript", ".jit": "torchscript"}
INCEPTION_SHA256_PREFIX = "6726825d"  # of weights-inception-2015-12-05-6726825d.pth, the release of torch-fidelity
SPATIAL_CHANNELS = 7  # of 192, as in ADM's evaluator


def extractor_format(path: str | os.PathLike) -> str:
    """The format that a file's suffix stands for. Raises ValueError for other suffixes."""
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} has suffix {suffix!r}; an extractor is one of {', '.join(SUFFIXES)}")
    return SUFFIXES[suffix]


def load_given_extractor(path: str | os.PathLike, *, format: str) -> nn.Module:
    """An extractor in eval mode, without gradients, on the CPU.

    torchscript: a file of `torch.jit.save`. python: a file that defines `build() -> nn.Module`; it is the user's own code and
    IS EXECUTED. inception: the network of Inception scores, FID and sFID with the weights of 2015-12-05; see
    `InceptionExtractor`. Nothing is downloaded. Raises CheckpointError for a missing or unreadable file, ValueError for an
    unknown format, or if `inception` is asked for and torch-fidelity is not installed.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown extractor format {format!r}; choose one of {', '.join(FORMATS)}")
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    check_is_no_pointer(path)
    load = {"torchscript": _load_torchscript, "python": _load_python, "inception": _load_inception}[format]
    extractor = load(path).eval()
    for parameter in extractor.parameters():  # TorchScript modules have no requires_grad_
        parameter.requires_grad = False
    return extractor


def weights_sha256(extractor: nn.Module) -> str:
    """A hash of an extractor's tensors, independent of the file that holds them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(extractor.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _load_torchscript(path: Path) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch deprecates TorchScript, but extractors are published in it
            return torch.jit.load(path, map_location="cpu")
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition(". ")[0].splitlines()[0]
        raise CheckpointError(f"{path} is not a TorchScript file, which torch.jit.save writes: {reason}") from error


def _load_python(path: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location(f"extractor_{sha256_of(path)[:12]}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module here
    try:
        spec.loader.exec_module(module)
        build = getattr(module, "build", None)
        extractor = build() if callable(build) else None
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{path} could not build an extractor: {type(error).__name__}: {reason}") from error
    if not isinstance(extractor, nn.Module):
        found = f"build() returns {type(extractor).__name__}" if callable(build) else "there is no build()"
        raise CheckpointError(f"{path} must define build() -> nn.Module; {found}")
    return extractor


def _load_inception(path: Path) -> nn.Module:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        wanted = "pip install -c constraints.txt -e '.[inception]'"
        raise ValueError(f"the inception extractor needs torch-fidelity: {wanted}") from error
    digest = sha256_of(path)
    if not digest.startswith(INCEPTION_SHA256_PREFIX):
        found = digest[: len(INCEPTION_SHA256_PREFIX)]
        raise CheckpointError(f"{path} has a sha256 of {found}..., expected {INCEPTION_SHA256_PREFIX}...")
    # torch-fidelity itself would unpickle the file or download one. It gets tensors that were read without executing code.
    checked = io.BytesIO()
    torch.save(read_state_dict(path), checked)
    checked.seek(0)
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=checked
        )
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit Inception: {str(error).splitlines()[-1].strip()}") from error
    return InceptionExtractor(network)


class InceptionExtractor(nn.Module):
    """Features for FID, sFID and Inception scores of uint8 images (N, 1 or 3, H, H), resized to 299 x 299 as in TensorFlow 1.

    "features": pooled (N, 2048). "logits": (N, 1008) without their bias, as in ADM's evaluator. "spatial": (N, 2023), the
    first 7 channels of the 17 x 17 output of the first 1x1 branch of Mixed_6d, which ADM's evaluator calls mixed_6/conv:0.
    Channels come last there, as in ADM's published moments. Grayscale images are repeated to RGB.
    """

    num_features = 2048

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        branch_outputs: list[Tensor] = []
        hook = self.network.Mixed_6d.branch1x1.register_forward_hook(lambda *call: branch_outputs.append(call[-1]))
        try:
            pooled, logits = self.network(images.expand(-1, 3, -1, -1))
        finally:
            hook.remove()
        spatial = branch_outputs[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return {"features": pooled, "logits": logits, "spatial": spatial}
