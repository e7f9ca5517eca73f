"""References of scores: moments of a reference set's features, and some of the features themselves.

A reference is built from features batch by batch, or read from an `.npz` (`fine_core.evaluation.adm`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from fine_core.checkpoints.native import load_tensors, save_tensors
from fine_core.evaluation.features import Features

MAX_KEPT_FEATURES = 10_000  # rows; as many as ADM's published references have for precision and recall


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean (F,) and unbiased covariance (F, F) of `num_samples` feature vectors, float64. `num_samples` 0: unknown."""

    mean: Tensor
    covariance: Tensor
    num_samples: int

    def to(self, device: torch.device | str) -> Moments:
        return replace(self, mean=self.mean.to(device), covariance=self.covariance.to(device))


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

    def to(self, device: torch.device | str) -> MomentsAccumulator:
        """The same on a device."""
        moved = MomentsAccumulator()
        moved._num_samples = self._num_samples
        if self._num_samples:
            moved._mean, moved._scatter = self._mean.to(device), self._scatter.to(device)
        return moved

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

    def to(self, device: torch.device | str) -> Reference:
        """The same on a device, where metrics are computed."""
        moved = {name: getattr(self, name).to(device) for name in self.fields}
        return replace(self, **moved)

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
            self._kept.append(features.pooled[:room].cpu())

    def build(self) -> Reference:
        """Raises ValueError below two images."""
        spatial = self._spatial.moments() if self._has_spatial else None
        return Reference(pooled=self._pooled.moments(), spatial=spatial, features=torch.cat(self._kept))
