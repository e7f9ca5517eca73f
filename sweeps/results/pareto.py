"""Points of a sweep from its records, and the non-dominated front of cost against FID with its uncertainty."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fine_core.evaluation.metrics import DEFAULT_METRICS, METRICS
from fine_core.evaluation.protocol import Protocol
from sweeps.planning.names import MethodNames
from sweeps.results.points import PointResult, Results

COSTS = ("params_total", "macs", "serve_bytes", "params_trainable")
TIMES = ("train_s", "eval_s")
FORGETTING = ("source_fid", "source_fid_before", "distance", "tuned_distance", "tuned_distance_per_parameter")
NUM_DRAWS = 4000


@dataclass(frozen=True, kw_only=True)
class Point:
    """One method at one size, over its seeds: a base model, or the transfer of one.

    `metrics`: means of those that were computed, by name. `fid_stderr` is None with a single seed; what is forgotten is None
    for base models. `serve_bytes` is what the point adds to storage: the dense weights of a base model, the delta of a
    transfer.
    """

    method: str
    initialization: str
    transfer: str
    dataset: str
    depth: int
    width: int
    num_heads: int
    protocol: Protocol
    trial_ids: str
    num_seeds: int
    metrics: dict[str, float]
    fid_stderr: float | None
    params_total: int
    params_trainable: int
    macs: int
    serve_bytes: int
    train_s: float
    eval_s: float
    source_fid: float | None
    source_fid_before: float | None
    distance: float | None
    tuned_distance: float | None
    tuned_distance_per_parameter: float | None

    @property
    def fid(self) -> float:
        return self.metrics["fid"]

    @property
    def label(self) -> str:
        return f"{self.method} L{self.depth}-D{self.width}"


def points_from(results: Results, names: MethodNames) -> list[Point]:
    """Average the seeds of every (method, size, protocol): base models before transfers, cheapest first."""
    groups: dict[tuple, list[PointResult]] = defaultdict(list)
    for result in results:
        groups[(names.of(result.job), result.job.size, result.protocol)].append(result)
    points = []
    for (method, size, protocol), members in groups.items():
        metrics = [member.metrics for member in members]
        job = members[0].job
        points.append(
            Point(
                method=method,
                initialization=job.initialization.name,
                transfer=job.transfer_name,
                dataset=job.dataset,
                depth=size.depth,
                width=size.width,
                num_heads=size.num_heads,
                protocol=protocol,
                trial_ids=" ".join(member.id for member in members),
                num_seeds=len(members),
                fid_stderr=standard_error_of(members),
                metrics={name: mean for name in METRICS if (mean := _mean(metrics, name)) is not None},
                **{name: _mean(metrics, name) for name in TIMES},
                **{name: _mean(metrics, f"forgetting/{name}") for name in FORGETTING},
                **{cost: metrics[0][cost] for cost in COSTS},
            )
        )
    return sorted(points, key=lambda p: (p.transfer != "none", p.params_total, p.fid))


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of independent values; None for a single one."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def standard_error_of(results: Results) -> float | None:
    """Of the mean FID of models of one point. Those that share what was pre-trained once are no independent repeats of it: with
    several seeds of that, each counts once."""
    by_source: dict[int, list[float]] = defaultdict(list)
    for result in results:
        by_source[result.job.initialization.source_seed].append(result.metrics["fid"])
    fids = [result.metrics["fid"] for result in results]
    return standard_error(fids if len(by_source) == 1 else [float(np.mean(own)) for own in by_source.values()])


def _mean(metrics: list[dict[str, float]], name: str) -> float | None:
    return float(np.mean([m[name] for m in metrics])) if name in metrics[0] else None


def non_dominated(costs: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Mask (..., N) of points that no other point beats: lower or equal in both, and strictly lower in one.

    costs (N,), scores (..., N): several draws of the scores are judged at once.
    """
    cheaper, strictly_cheaper = costs[:, None] <= costs, costs[:, None] < costs  # (other, point)
    better, strictly_better = scores[..., :, None] <= scores[..., None, :], scores[..., :, None] < scores[..., None, :]
    dominates = cheaper & better & (strictly_cheaper | strictly_better)
    return ~dominates.any(axis=-2)


def front(points: Sequence[Point], cost: str) -> list[bool]:
    """Which points are on the front of `cost` against mean FID. Raises ValueError if their protocols differ."""
    _check_one_protocol(points)
    costs = np.array([getattr(p, cost) for p in points], dtype=float)
    return non_dominated(costs, np.array([p.fid for p in points])).tolist()


def front_probability(points: Sequence[Point], cost: str) -> list[float | None]:
    """Chance that each point is on the front when every FID is redrawn from its mean and standard error.

    None for all as long as a point has a single seed.
    """
    _check_one_protocol(points)
    if any(p.fid_stderr is None for p in points):
        return [None] * len(points)
    costs = np.array([getattr(p, cost) for p in points], dtype=float)
    means, errors = np.array([p.fid for p in points]), np.array([p.fid_stderr for p in points])
    draws = np.random.default_rng(0).normal(means, errors, size=(NUM_DRAWS, len(points)))
    return np.mean([non_dominated(costs, draw) for draw in draws], axis=0).tolist()


def _check_one_protocol(points: Sequence[Point]) -> None:
    if len({p.protocol for p in points}) > 1:
        raise ValueError("points of different protocols cannot share a front")


def by_protocol(points: Sequence[Point]) -> dict[Protocol, list[Point]]:
    """Points that may be compared with each other."""
    groups: dict[Protocol, list[Point]] = defaultdict(list)
    for point in points:
        groups[point.protocol].append(point)
    return dict(groups)


def report_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The table of the report: every point with its membership in the joint fronts and in its own method's."""
    columns = [name for name in METRICS if name in DEFAULT_METRICS or any(name in p.metrics for p in points)]
    rows = [_row(point, columns) for point in points]
    by_method: dict[str, list[int]] = defaultdict(list)
    for index, point in enumerate(points):
        by_method[point.method].append(index)
    for cost in COSTS:
        for row, member in zip(rows, front(points, cost), strict=True):
            row[f"front_{cost}"] = member
        for indices in by_method.values():
            for index, member in zip(indices, front([points[i] for i in indices], cost), strict=True):
                rows[index][f"method_front_{cost}"] = member
    for row, probability in zip(rows, front_probability(points, "params_total"), strict=True):
        row["front_probability"] = probability
    return rows


def _row(point: Point, columns: Sequence[str]) -> dict[str, Any]:
    """A point as plain data, with a column for every metric: None where it was not computed."""
    row: dict[str, Any] = {}
    for name, value in vars(point).items():
        row |= {column: point.metrics.get(column) for column in columns} if name == "metrics" else {name: value}
    return row | {"label": point.label, "protocol": str(point.protocol)}
