"""What metrics read of generated images, taken in batch by batch by one worker or by several."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fine_core.evaluation.features import Features
from fine_core.evaluation.reference import Moments, MomentsAccumulator


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Moments of the samples' pooled and spatial features, pooled features (N, F) and logits (N, K): those that are needed."""

    num_samples: int
    pooled: Moments | None = None
    spatial: Moments | None = None
    features: Tensor | None = None
    logits: Tensor | None = None


def fields_of(features: Features) -> frozenset[str]:
    """The fields of `Samples` that features like these can fill."""
    return frozenset(name for name, values in _by_field(features).items() if values is not None)


def _by_field(features: Features) -> dict[str, Tensor | None]:
    return {
        "pooled": features.pooled,
        "spatial": features.spatial,
        "features": features.pooled,
        "logits": features.logits,
    }


class SampleBuilder:
    """Takes in features of batches for some fields of `Samples`. A worker has one for its own batches."""

    def __init__(self, fields: Collection[str]) -> None:
        self._num_samples = 0
        self._moments = {name: MomentsAccumulator() for name in ("pooled", "spatial") if name in fields}
        self._rows: dict[str, dict[int, Tensor]] = {name: {} for name in ("features", "logits") if name in fields}

    def add(self, features: Features, *, batch: int) -> None:
        """Add the features of one batch, known by its number."""
        found = _by_field(features)
        for name, moments in self._moments.items():
            moments.add(found[name])
        for name, rows in self._rows.items():
            rows[batch] = found[name]
        self._num_samples += len(features)

    def to(self, device: torch.device | str) -> SampleBuilder:
        """The same on a device: what workers gather goes over the CPU."""
        moved = SampleBuilder(())
        moved._num_samples = self._num_samples
        moved._moments = {name: moments.to(device) for name, moments in self._moments.items()}
        moved._rows = {name: {batch: rows.to(device) for batch, rows in all.items()} for name, all in self._rows.items()}
        return moved

    @staticmethod
    def join(parts: Sequence[SampleBuilder]) -> Samples:
        """All that the workers have taken in, in the batches' order. Raises ValueError below two samples for moments."""
        moments = {name: MomentsAccumulator() for name in parts[0]._moments}
        rows: dict[str, dict[int, Tensor]] = {name: {} for name in parts[0]._rows}
        for part in parts:
            for name, accumulator in moments.items():
                accumulator.merge(part._moments[name])
            for name, batches in rows.items():
                batches.update(part._rows[name])
        return Samples(
            num_samples=sum(part._num_samples for part in parts),
            **{name: accumulator.moments() for name, accumulator in moments.items()},
            **{name: torch.cat([batches[batch] for batch in sorted(batches)]) for name, batches in rows.items()},
        )
