"""Rows of what is reported beside the points: schedules over the timesteps, FID over the share of replaced steps, and the
errors of a decomposition."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fine_core.initializers.matrices import BLOCK_MATRICES
from fine_core.retention import RetentionSchedule
from sweeps.planning.names import MethodNames
from sweeps.planning.points import ForgettingCurve
from sweeps.results.pareto import standard_error
from trainables.methods.diff_tuning import ScheduleOptions
from trainables.specs.models import DecompositionSpec
from trainables.specs.transfers import TransferSpec
from trainables.storage.record import Record
from trainables.storage.store import Store


def used_schedules(transfers: Sequence[TransferSpec]) -> dict[str, dict[str, list[float]]]:
    """psi and xi over all timesteps of every schedule that a plan uses."""
    options = [one for job in transfers for one in job.options if isinstance(one, ScheduleOptions)]
    return {one.schedule: schedule_curves(one.retention) for one in options}


def schedule_curves(schedule: RetentionSchedule) -> dict[str, list[float]]:
    """psi and xi over all timesteps."""
    return {"psi": schedule.psi().tolist(), "xi": schedule.xi().tolist()}


def decomposition_rows(job: DecompositionSpec, record: Record) -> list[dict[str, Any]]:
    """One row per matrix type: its relative error after the joint SVD and after alternating least squares."""
    errors = {m: {step: record.metrics[f"error/{m}/{step}"] for step in ("joint_svd", "als")} for m in BLOCK_MATRICES}
    return [{"matrix": matrix, "rank": job.rank, **values} for matrix, values in errors.items()]


def curve_rows(curves: Sequence[ForgettingCurve], names: MethodNames, store: Store) -> list[dict[str, Any]]:
    """One row per transfer method and share of replaced steps that has a score, averaged over the seeds."""
    fids: dict[tuple[str, str, str, float], list[float]] = defaultdict(list)
    for curve in curves:
        for score in curve.scores:
            if (record := store.read_record(score)) is not None:
                share = score.replaced_steps / score.evaluation.sampler.sampling_steps
                protocol = str(replace(record.protocol, replaced_steps=0))
                fids[(names.of(curve.transfer), curve.transfer.size.name, protocol, share)].append(record.metrics["fid"])
    return [
        {
            "method": method,
            "size": size,
            "share": share,
            "fid": float(np.mean(values)),
            "fid_stderr": standard_error(values),
            "num_seeds": len(values),
            "protocol": protocol,
        }
        for (method, size, protocol, share), values in sorted(fids.items())
    ]
