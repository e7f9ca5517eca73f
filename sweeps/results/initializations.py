"""Initializations side by side: quality from the start to the end of equal steps, and what N sizes cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from sweeps.planning.points import PlannedPoint
from sweeps.results.pareto import standard_error_of
from sweeps.results.points import PointResult, point_result
from trainables.jobs.kind import Kept, Role
from trainables.jobs.registry import kind_of
from trainables.specs.base import JobSpec
from trainables.specs.models import BaseModelSpec
from trainables.storage.store import Store

REFERENCE = "scratch"  # whose FID after equal steps the others are to reach


def initialization_rows(points: Sequence[PlannedPoint], store: Store) -> list[dict[str, Any]]:
    """One row per size and initialization, over all seeds of finished base models that are scored on their way.

    `fid_start`: as it starts; `fid_at`: mean FID by the number of steps in which everything was trained, 0 being after the
    coefficient phase alone. `steps_to_reference`: the fewest of these steps after which FID is no worse than that of `scratch`
    in the end; None if never.
    """
    groups: dict[tuple, list[tuple[PlannedPoint, PointResult]]] = defaultdict(list)
    for point in points:
        if point.milestones and (result := point_result(point, store)) is not None:
            groups[(point.model.size, point.model.initialization.name)].append((point, result))
    rows = [_row(members, store) for members in groups.values()]
    final = {(row["depth"], row["width"]): row["fid"] for row in rows if row["initialization"] == REFERENCE}
    for row in rows:
        goal = final.get((row["depth"], row["width"]))
        row["steps_to_reference"] = None if goal is None else next((s for s, fid in row["fid_at"].items() if fid <= goal), None)
    return sorted(rows, key=lambda row: (row["depth"], row["width"], row["fid"]))


def _row(members: Sequence[tuple[PlannedPoint, PointResult]], store: Store) -> dict[str, Any]:
    job, results = members[0][0].model, [result for _, result in members]
    assert isinstance(job, BaseModelSpec)
    first = job.initialization.coefficient_steps
    curves: dict[int, list[float]] = defaultdict(list)
    for point, result in members:
        for score in point.milestones:
            assert score.partial is not None
            curves[score.partial.step].append(store.record(score).metrics["fid"])
        curves[job.training.steps].append(result.metrics["fid"])
    means = {step: float(np.mean(fids)) for step, fids in sorted(curves.items())}
    one_off = [_one_off(result.job, store) for result in results]
    return {
        "initialization": job.initialization.name,
        "depth": job.size.depth,
        "width": job.size.width,
        "fid_start": means[0],
        "fid_at": {step - first: fid for step, fid in means.items() if step >= first},
        "fid": means[job.training.steps],
        "fid_stderr": standard_error_of(results),
        "num_seeds": len(results),
        "num_source_seeds": len({result.job.initialization.source_seed for result in results}),
        "coefficient_steps": first,
        "model_steps": job.training.steps,
        "model_s": float(np.mean([result.metrics["train_s"] for result in results])),
        "one_off_steps": float(np.mean([steps for steps, _ in one_off])),
        "one_off_s": float(np.mean([seconds for _, seconds in one_off])),
        "initialize_bytes": results[0].metrics["initialize_bytes"],
        "serve_bytes": results[0].metrics["serve_bytes"],
        "protocol": str(results[0].protocol),
    }


def _one_off(job: JobSpec, store: Store) -> tuple[float, float]:
    """Steps and seconds of what was made once for all sizes."""
    steps, seconds = 0.0, 0.0
    for need in job.needs:
        kept: Kept | None = kind_of(need).kept
        if kept is not None and kept.role is Role.INITIALIZE and kept.steps is not None:
            metrics = store.record(need).metrics
            steps, seconds = steps + metrics[kept.steps], seconds + metrics[kept.seconds]
    return steps, seconds


def cost_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What all sizes of a grid cost with each initialization, as measured: FINE's accounting (arXiv 2409.19289, section 4.2).

    `total_steps` = one-off + the steps of every size. `times_fewer_steps`: those of fully pre-training every size over these,
    with the one-off in (`full` must be in the grid; else None) and without. `times_fewer_bytes`: the dense bytes of all sizes
    over those that initialize any of them.
    """
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_name[row["initialization"]].append(row)
    pretrained = {(row["depth"], row["width"]): row["model_steps"] for row in by_name.get("full", [])}
    found = []
    for name, members in by_name.items():
        steps, one_off = sum(row["model_steps"] for row in members), members[0]["one_off_steps"]
        full = None
        if all((row["depth"], row["width"]) in pretrained for row in members):
            full = sum(pretrained[row["depth"], row["width"]] for row in members)
        stored = members[0]["initialize_bytes"]
        found.append(
            {
                "initialization": name,
                "num_sizes": len(members),
                "initialize_bytes": stored,
                "dense_bytes": sum(row["serve_bytes"] for row in members),
                "times_fewer_bytes": sum(row["serve_bytes"] for row in members) / stored if stored else None,
                "one_off_steps": one_off,
                "one_off_s": members[0]["one_off_s"],
                "steps_of_sizes": steps,
                "total_steps": one_off + steps,
                "total_s": members[0]["one_off_s"] + sum(row["model_s"] for row in members),
                "times_fewer_steps": None if full is None else full / (one_off + steps),
                "times_fewer_steps_without_one_off": None if full is None else full / steps,
            }
        )
    return sorted(found, key=lambda row: row["total_steps"])
