"""The metrics that are asked for: their names, those of them that can be had, and their values."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fine_core.evaluation.metrics import DEFAULT_METRICS, METRICS
from fine_core.evaluation.reference import Reference
from fine_core.evaluation.samples import Samples


class MetricUnavailable(ValueError):
    """A metric that was asked for by name and cannot be had of this extractor and reference."""


def metrics_named(names: Iterable[str]) -> tuple[str, ...]:
    """`names` without duplicates, in the registry's order. Raises ValueError for an unknown name, or if fid is missing."""
    asked = set(names)
    for name in sorted(asked):
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}; choose from {', '.join(METRICS)}")
    if "fid" not in asked:
        raise ValueError(f"metrics are {', '.join(sorted(asked)) or 'none'}; fid must be among them, as fronts are by FID")
    return tuple(name for name in METRICS if name in asked)


def obtainable(
    names: tuple[str, ...], *, of_samples: Collection[str], of_reference: Collection[str], num_images: int | None = None
) -> tuple[str, ...]:
    """The metrics among `names` that these fields of `Samples` and `Reference` and this number of images allow.

    `num_images` is the size of the smaller set, None if unknown. If `names` has all default metrics, an unavailable default
    metric other than FID is left out. Raises MetricUnavailable for every other unavailable metric.
    """
    optional = set(DEFAULT_METRICS) - {"fid"} if set(DEFAULT_METRICS) <= set(names) else set()
    have = {"of_samples": of_samples, "of_reference": of_reference, "num_images": num_images}
    lacking = {name: METRICS[name].lacks(**have) for name in names}
    for name, problem in lacking.items():
        if problem is not None and name not in optional:
            remedy = "fronts are by FID" if name == "fid" else f"leave {name} out of the metrics"
            raise MetricUnavailable(f"{problem}; {remedy}")
    return tuple(name for name in names if lacking[name] is None)


def needs_of(names: Iterable[str]) -> frozenset[str]:
    """The fields of `Samples` that these metrics read."""
    return frozenset(need for name in names for need in METRICS[name].needs)


def compute_metrics(
    names: Iterable[str], reference: Reference, samples: Samples, *, num_samples: int, seed: int
) -> dict[str, float]:
    """The metrics by name. Raises ValueError for fewer samples than `num_samples`, the protocol's."""
    if samples.num_samples < num_samples:
        raise ValueError(f"the protocol asks for {num_samples} samples, {samples.num_samples} were drawn")
    return {name: METRICS[name].compute(reference, samples, seed=seed) for name in names}
