"""References of scores: moments of a reference set's features, and some of the features themselves.

A reference is built from features batch by batch, or read from an `.npz` of ADM's evaluation suite (Dhariwal and Nichol,
arXiv 2105.05233, section 2.2). Samples are written in the same format.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fine_core.checkpoints.native import CheckpointError, load_tensors, save_tensors
from fine_core.evaluation.features import Features, extract_features
from fine_core.files import whole_file

MAX_KEPT_FEATURES = 10_000  # rows; as many as ADM's published references have for precision and recall
IMAGES_AT_ONCE = 64  # per pass of an extractor, which may be as large as Inception
SYMMETRY_TOLERANCE = 1e-4  # of the largest entry: some files are in float32
ADM_ARRAYS = ("mu", "sigma", "mu_s", "sigma_s", "arr_0")


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean (F,) and unbiased covariance (F, F) of `num_samples` feature vectors, float64. `num_samples` 0: unknown."""

    mean: Tensor
    covariance: Tensor
    num_samples: int


class MomentsAccumulator:
    """Running moments of features in batches, merged as in Chan et al. 1979: a large mean costs no precision."""

    def __init__(self) -> None:
        self._num_samples = 0

    def add(self, features: Tensor) -> None:
        """Add features (N, F); N may differ between calls."""
        if len(features) == 0:
            return
        features = features.double()
        mean = features.mean(dim=0)
        centered = features - mean
        self._scatter_for(mean).addmm_(centered.T, centered)
        self._shift(mean, len(features))

    def merge(self, other: MomentsAccumulator) -> None:
        """Add all that another one has taken in."""
        if other._num_samples == 0:
            return
        self._scatter_for(other._mean).add_(other._scatter)
        self._shift(other._mean, other._num_samples)

    def _scatter_for(self, mean: Tensor) -> Tensor:
        """The sum of the centered features' outer products, (F, F)."""
        if self._num_samples == 0:
            self._mean, self._scatter = torch.zeros_like(mean), mean.new_zeros(len(mean), len(mean))
        return self._scatter

    def _shift(self, mean: Tensor, num_samples: int) -> None:
        """Move the mean by that of further features, whose own scatter has been added."""
        total, shift = self._num_samples + num_samples, mean - self._mean
        self._scatter.addr_(shift, shift, alpha=self._num_samples * num_samples / total)
        self._mean = self._mean + shift * (num_samples / total)
        self._num_samples = total

    def moments(self) -> Moments:
        """Raises ValueError below two samples."""
        if self._num_samples < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self._num_samples}")
        covariance = self._scatter / (self._num_samples - 1)
        return Moments(mean=self._mean, covariance=covariance, num_samples=self._num_samples)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Moments of a reference set's pooled and spatial features, and at most MAX_KEPT_FEATURES pooled ones (N, F), float32."""

    pooled: Moments
    spatial: Moments | None
    features: Tensor | None

    @property
    def fields(self) -> frozenset[str]:
        """The fields that it has."""
        return frozenset(field.name for field in fields(self) if getattr(self, field.name) is not None)

    def save(self, path: str | os.PathLike) -> None:
        sets = {"pooled": self.pooled, "spatial": self.spatial}
        tensors = {} if self.features is None else {"features": self.features}
        num_samples = {}
        for name, moments in sets.items():
            if moments is not None:
                tensors |= {f"{name}.mean": moments.mean, f"{name}.covariance": moments.covariance}
                num_samples[name] = moments.num_samples
        save_tensors(path, tensors, kind="reference", config={"num_samples": num_samples})

    @staticmethod
    def load(path: str | os.PathLike) -> Reference:
        """Raises CheckpointError if the file is damaged or of another kind, FileNotFoundError if there is none."""
        tensors, config = load_tensors(path, kind="reference")
        moments = {
            name: Moments(mean=tensors[f"{name}.mean"], covariance=tensors[f"{name}.covariance"], num_samples=num_samples)
            for name, num_samples in config["num_samples"].items()
        }
        return Reference(pooled=moments["pooled"], spatial=moments.get("spatial"), features=tensors.get("features"))


class ReferenceBuilder:
    """Builds a reference from features in batches, and keeps the first MAX_KEPT_FEATURES pooled ones."""

    def __init__(self) -> None:
        self._pooled, self._spatial = MomentsAccumulator(), MomentsAccumulator()
        self._kept: list[Tensor] = []
        self._has_spatial = False

    def add(self, features: Features) -> None:
        """Add features of some images. All calls must use one extractor."""
        self._pooled.add(features.pooled)
        if features.spatial is not None:
            self._spatial.add(features.spatial)
            self._has_spatial = True
        room = MAX_KEPT_FEATURES - sum(map(len, self._kept))
        if room > 0:
            self._kept.append(features.pooled[:room])

    def build(self) -> Reference:
        """Raises ValueError below two images."""
        spatial = self._spatial.moments() if self._has_spatial else None
        return Reference(pooled=self._pooled.moments(), spatial=spatial, features=torch.cat(self._kept))


def reference_from_adm(path: str | os.PathLike, extractor: nn.Module) -> Reference:
    """A reference from an `.npz` of ADM's evaluation suite: `mu`, `sigma`, `mu_s` and `sigma_s`, `arr_0`, or all of them.

    `mu` and `sigma` are the pooled moments, `mu_s` and `sigma_s` the spatial ones. The kept features are the extractor's, of
    the first images of `arr_0` (N, H, H, C), uint8. Without `mu` and `sigma` the moments too come from `arr_0`, which is
    held in memory as a whole. Raises CheckpointError for other content, and for moments of another extractor: they do not
    fit its features of `arr_0` or, without images, its `num_features` (if it has that).
    """
    arrays = _read_npz(path)
    pooled, spatial = _moments(arrays, "mu", "sigma", path), _moments(arrays, "mu_s", "sigma_s", path)
    images = _images(arrays, path)
    if pooled is None and images is None:
        raise CheckpointError(f"{path} has neither mu and sigma nor arr_0; a reference of ADM's suite has one of them or both")
    if images is None:
        _check_dimension(pooled, getattr(extractor, "num_features", None), "features", path)
        return Reference(pooled=pooled, spatial=spatial, features=None)
    builder = ReferenceBuilder()
    for batch in images[: None if pooled is None else MAX_KEPT_FEATURES].split(IMAGES_AT_ONCE):
        features = extract_features(extractor, batch)
        _check_dimension(pooled, features.pooled.shape[1], "features", path)
        _check_dimension(spatial, None if features.spatial is None else features.spatial.shape[1], "spatial features", path)
        builder.add(features)
    built = builder.build()
    if pooled is None:
        return built
    return Reference(pooled=pooled, spatial=spatial, features=built.features)


def _check_dimension(moments: Moments | None, expected: int | None, what: str, path: str | os.PathLike) -> None:
    if moments is not None and expected is not None and len(moments.mean) != expected:
        raise CheckpointError(f"{path} has moments of {len(moments.mean)} {what}; the extractor has {expected}")


def _read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays named in ADM_ARRAYS that an `.npz` has. Nothing is unpickled."""
    if not Path(path).is_file():
        raise CheckpointError(f"no such file: {path}")
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.lib.npyio.NpzFile):
            with file:
                return {name: np.asarray(file[name]) for name in ADM_ARRAYS if name in file}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path} is not a readable .npz of plain arrays: {str(error).splitlines()[0]}") from error
    raise CheckpointError(f"{path} is a single array, not an .npz")


def _moments(arrays: Mapping[str, np.ndarray], mean: str, covariance: str, path: str | os.PathLike) -> Moments | None:
    if mean not in arrays and covariance not in arrays:
        return None
    if mean not in arrays or covariance not in arrays:
        raise CheckpointError(f"{path} has only one of {mean} and {covariance}; moments are both")
    first, second = arrays[mean], arrays[covariance]
    if first.ndim != 1 or second.shape != 2 * first.shape or first.dtype.kind != "f" or second.dtype.kind != "f":
        found = f"{mean} {first.dtype} {first.shape} and {covariance} {second.dtype} {second.shape}"
        raise CheckpointError(f"{path} has {found}; moments are floats of shape (F,) and (F, F)")
    if not np.isfinite(first).all() or not np.isfinite(second).all():
        raise CheckpointError(f"{path} has numbers in {mean} or {covariance} that are not finite")
    scale = max(float(np.abs(second).max()), 1e-12)
    if np.abs(second - second.T).max() > SYMMETRY_TOLERANCE * scale:
        raise CheckpointError(f"{path} has a {covariance} that is not symmetric; it must be the covariance of features")
    if second.diagonal().min() < 0:
        raise CheckpointError(f"{path} has negative variances in {covariance}; it must be the covariance of features")
    return Moments(
        mean=torch.from_numpy(first.astype(np.float64)),
        covariance=torch.from_numpy(second.astype(np.float64)),
        num_samples=0,
    )


def _images(arrays: Mapping[str, np.ndarray], path: str | os.PathLike) -> Tensor | None:
    """uint8 images (N, C, H, H) from `arr_0`, or None without it."""
    if "arr_0" not in arrays:
        return None
    images = arrays["arr_0"]
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) < 2:
        raise CheckpointError(f"{path} has arr_0 {images.dtype} {images.shape}; images are uint8 (N, H, H, C), at least 2")
    if images.shape[3] not in (1, 3):
        hint = "; they are (N, C, H, H)" if images.shape[1] in (1, 3) else ""
        raise CheckpointError(f"{path} has arr_0 {images.shape}{hint}; images are (N, H, H, C), with 1 or 3 channels last")
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def save_samples_npz(path: str | os.PathLike, images: Tensor) -> None:
    """Write uint8 images (N, C, H, H) as ADM's evaluator reads samples: `arr_0` (N, H, H, 3), grayscale repeated to RGB.

    The write is atomic. Raises ValueError for other images.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"samples are {images.dtype} {tuple(images.shape)}; they must be uint8 (N, 1 or 3, H, H)")
    pixels = images.cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    with whole_file(path) as temporary, open(temporary, "wb") as file:  # to a path, numpy would append .npz
        np.savez(file, arr_0=pixels.contiguous().numpy())
