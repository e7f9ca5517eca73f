"""Results of points: the record of a model and those of its scores, read together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fine_core.evaluation.protocol import Protocol
from sweeps.planning.points import PlannedPoint
from trainables.specs.models import BaseModelSpec
from trainables.specs.scores import ScoreSpec
from trainables.specs.transfers import TransferSpec
from trainables.storage.files import SAMPLES_FILE
from trainables.storage.record import History, Record
from trainables.storage.store import Store, StoreError
from trainables.storage.warning import warn_once


@dataclass(frozen=True, kw_only=True)
class PointResult:
    """A finished point. `metrics`: of its model and of all its scores, those on the source domain as `forgetting/...`."""

    job: BaseModelSpec | TransferSpec
    score: ScoreSpec
    model_record: Record
    score_record: Record
    metrics: dict[str, float]

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def protocol(self) -> Protocol:
        assert self.score_record.protocol is not None, "every score has one"
        return self.score_record.protocol

    @property
    def history(self) -> History:
        return self.model_record.history


Results = Sequence[PointResult]


def point_result(point: PlannedPoint, store: Store) -> PointResult | None:
    """The result of a point; None as long as its model or one of its scores is missing."""
    found = {job.id: store.read_record(job) for job in (point.model, *point.all_scores)}
    if None in found.values():
        return None
    model, score = store.record(point.model), store.record(point.score)
    metrics = model.metrics | score.metrics | {"job_s": sum(r.metrics["job_s"] for r in (model, score))}
    metrics["peak_memory_bytes"] = max(r.metrics["peak_memory_bytes"] for r in (model, score))
    if point.forgetting is not None and point.forgetting_before is not None:
        after, before = store.record(point.forgetting), store.record(point.forgetting_before)
        metrics |= {
            "forgetting/source_fid": after.metrics["fid"],
            "forgetting/source_fid_before": before.metrics["fid"],
            "forgetting/eval_s": after.metrics["eval_s"],
        }
    return PointResult(job=point.model, score=point.score, model_record=model, score_record=score, metrics=metrics)


def sample_picture(result: PointResult, store: Store) -> Path | None:
    """The picture of a point's samples. A damaged or lost one is named and left out: nothing is computed from it."""
    try:
        return store.fetch(result.score, SAMPLES_FILE)
    except StoreError as error:
        warn_once(str(error))
        return None
