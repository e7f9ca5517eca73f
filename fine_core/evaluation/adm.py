"""References and samples as `.npz` of ADM's evaluation suite (Dhariwal and Nichol, arXiv 2105.05233, section 2.2)."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fine_core.checkpoints.native import CheckpointError, check_is_no_pointer
from fine_core.evaluation.features import Features, extract_features
from fine_core.evaluation.reference import MAX_KEPT_FEATURES, Moments, Reference, ReferenceBuilder
from fine_core.files import whole_file

IMAGES_AT_ONCE = 64  # per pass of an extractor, which may be as large as Inception
SYMMETRY_TOLERANCE = 1e-4  # of the largest entry: some files are in float32
NEGATIVE_TOLERANCE = 1e-3  # of the largest eigenvalue
ADM_IMAGES = "arr_0"
ADM_ARRAYS = ("mu", "sigma", "mu_s", "sigma_s", ADM_IMAGES)


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
    _check_has_either(pooled, images, path)
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


def check_adm(path: str | os.PathLike, features: Features) -> tuple[frozenset[str], int | None]:
    """Check an `.npz` of ADM's evaluation suite against features of some images, without reading its images.

    Returns the fields of the reference that it gives, and how many of its images' features are kept (None without images).
    Raises CheckpointError as `reference_from_adm`.
    """
    arrays = _read_npz(path, without=ADM_IMAGES)
    shape = _image_shape(path)
    pooled, spatial = _moments(arrays, "mu", "sigma", path), _moments(arrays, "mu_s", "sigma_s", path)
    _check_has_either(pooled, shape, path)
    _check_dimension(pooled, features.pooled.shape[1], "features", path)
    _check_dimension(spatial, None if features.spatial is None else features.spatial.shape[1], "spatial features", path)
    names = {"pooled"} | ({"features"} if shape is not None else set())
    if spatial is not None or (pooled is None and features.spatial is not None):
        names.add("spatial")
    return frozenset(names), None if shape is None else min(shape[0], MAX_KEPT_FEATURES)


def _check_has_either(pooled: Moments | None, images: object, path: str | os.PathLike) -> None:
    if pooled is None and images is None:
        raise CheckpointError(f"{path} has neither mu and sigma nor arr_0; a reference of ADM's suite has one of them or both")


def _check_dimension(moments: Moments | None, expected: int | None, what: str, path: str | os.PathLike) -> None:
    if moments is not None and expected is not None and len(moments.mean) != expected:
        raise CheckpointError(f"{path} has moments of {len(moments.mean)} {what}; the extractor has {expected}")


def _read_npz(path: str | os.PathLike, *, without: str | None = None) -> dict[str, np.ndarray]:
    """The arrays named in ADM_ARRAYS that an `.npz` has, but for one. Nothing is unpickled."""
    if not Path(path).is_file():
        raise CheckpointError(f"no such file: {path}")
    check_is_no_pointer(path)
    with _readable(path):
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.lib.npyio.NpzFile):
            with file:
                return {name: np.asarray(file[name]) for name in ADM_ARRAYS if name in file and name != without}
    raise CheckpointError(f"{path} is a single array, not an .npz")


def _image_shape(path: str | os.PathLike) -> tuple[int, ...] | None:
    """The shape of `arr_0`, whose images are not read; None without it."""
    with _readable(path), zipfile.ZipFile(path) as file:
        if f"{ADM_IMAGES}.npy" not in file.namelist():
            return None
        with file.open(f"{ADM_IMAGES}.npy") as array:
            version = np.lib.format.read_magic(array)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(array)
    _check_images(shape, dtype, path)
    return shape


@contextmanager
def _readable(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not a readable .npz of plain arrays: {str(error).splitlines()[0]}") from error


def _moments(arrays: Mapping[str, np.ndarray], mean: str, covariance: str, path: str | os.PathLike) -> Moments | None:
    if mean not in arrays and covariance not in arrays:
        return None
    if mean not in arrays or covariance not in arrays:
        raise CheckpointError(f"{path} has only one of {mean} and {covariance}; moments are both")
    first, second = arrays[mean], arrays[covariance]
    if (
        first.ndim != 1
        or first.size == 0
        or second.shape != 2 * first.shape
        or first.dtype.kind != "f"
        or second.dtype.kind != "f"
    ):
        found = f"{mean} {first.dtype} {first.shape} and {covariance} {second.dtype} {second.shape}"
        raise CheckpointError(f"{path} has {found}; moments are floats of shape (F,) and (F, F)")
    if not np.isfinite(first).all() or not np.isfinite(second).all():
        raise CheckpointError(f"{path} has numbers in {mean} or {covariance} that are not finite")
    scale = max(float(np.abs(second).max()), 1e-12)
    if np.abs(second - second.T).max() > SYMMETRY_TOLERANCE * scale:
        raise CheckpointError(f"{path} has a {covariance} that is not symmetric; it must be the covariance of features")
    if second.diagonal().min() < 0:
        raise CheckpointError(f"{path} has negative variances in {covariance}; it must be the covariance of features")
    variances = np.linalg.eigvalsh(second.astype(np.float64))
    if variances[0] < -NEGATIVE_TOLERANCE * max(float(variances[-1]), 1e-12):
        raise CheckpointError(f"{path} has a {covariance} with a negative eigenvalue ({variances[0]:.3g}); it is no covariance")
    return Moments(
        mean=torch.from_numpy(first.astype(np.float64)),
        covariance=torch.from_numpy(second.astype(np.float64)),
        num_samples=0,
    )


def _images(arrays: Mapping[str, np.ndarray], path: str | os.PathLike) -> Tensor | None:
    """uint8 images (N, C, H, H) from `arr_0`, or None without it."""
    if ADM_IMAGES not in arrays:
        return None
    images = arrays[ADM_IMAGES]
    _check_images(images.shape, images.dtype, path)
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _check_images(shape: tuple[int, ...], dtype: np.dtype, path: str | os.PathLike) -> None:
    if dtype != np.uint8 or len(shape) != 4 or shape[0] < 2 or 0 in shape:
        raise CheckpointError(f"{path} has arr_0 {dtype} {shape}; images are uint8 (N, H, H, C), at least 2")
    if shape[3] not in (1, 3):
        hint = "; they are (N, C, H, H)" if shape[1] in (1, 3) else ""
        raise CheckpointError(f"{path} has arr_0 {shape}{hint}; images are (N, H, H, C), with 1 or 3 channels last")


def save_samples_npz(path: str | os.PathLike, images: Tensor) -> None:
    """Write uint8 images (N, C, H, H) as ADM's evaluator reads samples: `arr_0` (N, H, H, 3), grayscale repeated to RGB.

    The write is atomic. Raises ValueError for other images.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"samples are {images.dtype} {tuple(images.shape)}; they must be uint8 (N, 1 or 3, H, H)")
    pixels = images.cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    with whole_file(path) as temporary, open(temporary, "wb") as file:  # to a path, numpy would append .npz
        np.savez(file, arr_0=pixels.contiguous().numpy())
