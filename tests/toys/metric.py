"""Toy: the distance of the mean features."""

from __future__ import annotations

from fine_core.evaluation.metrics.base import Metric
from fine_core.evaluation.reference import Reference
from fine_core.evaluation.samples import Samples


def _distance(reference: Reference, samples: Samples, *, seed: int) -> float:
    return (reference.pooled.mean - samples.pooled.mean).norm().item()


TOY = Metric(name="toy_distance", label="toy distance", lower_is_better=True, needs=("pooled",), compute=_distance)
