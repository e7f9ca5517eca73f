"""Metrics of generated images against a reference: one registry behind scores, tables, records and objectives of searches."""

from __future__ import annotations

from fine_core.evaluation.metrics.base import Metric
from fine_core.evaluation.metrics.frechet import FID, SFID
from fine_core.evaluation.metrics.inception_score import INCEPTION_SCORE
from fine_core.evaluation.metrics.kid import KID
from fine_core.evaluation.metrics.manifold import COVERAGE, DENSITY, PRECISION, RECALL
from fine_core.evaluation.metrics.mind import MIND

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        FID,
        SFID,
        KID,
        PRECISION,
        RECALL,
        INCEPTION_SCORE,
        DENSITY,
        COVERAGE,
        MIND,
    )
}
DEFAULT_METRICS = ("fid", "sfid", "kid", "precision", "recall", "inception_score")
