"""Fronts against a brute-force definition, uncertainty, and the refusal to mix protocols."""

import itertools
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from fine_core.evaluation.metrics import DEFAULT_METRICS, METRICS
from fine_core.evaluation.protocol import Protocol
from sweeps.display.tables import WIDE_TERMINAL, show_front
from sweeps.planning.names import MethodNames
from sweeps.results.pareto import Point, by_protocol, front, front_probability, non_dominated, points_from, report_rows
from sweeps.results.points import PointResult, point_result
from tests.searches import record_of
from tests.tiny import TINY_EVALUATION, tiny_base, tiny_point, tiny_score, tiny_transfer
from trainables.storage.store import Store

PROTOCOL = Protocol.of(TINY_EVALUATION, extractor="e", reference="digits:pool")
OTHER = replace(PROTOCOL, num_samples=21)


def point(fid: float, params: int, *, stderr: float | None = 0.01, protocol: Protocol = PROTOCOL, depth: int = 2) -> Point:
    same = {"method": "fine", "initialization": "fine", "transfer": "none", "dataset": "digits", "trial_ids": "a b"}
    same |= {
        "width": 16,
        "num_heads": 2,
        "num_seeds": 3,
        "train_s": 1.0,
        "eval_s": 1.0,
    }
    costs = dict.fromkeys(("params_total", "params_trainable", "macs", "serve_bytes"), params)
    unknown = dict.fromkeys(("source_fid", "source_fid_before", "distance", "tuned_distance", "tuned_distance_per_parameter"))
    return Point(
        depth=depth, protocol=protocol, metrics={"fid": fid, "kid": 0.1}, fid_stderr=stderr, **same, **costs, **unknown
    )


def result(job, metrics: dict[str, float], protocol: Protocol = PROTOCOL) -> PointResult:
    """A finished point with these metrics."""
    score = tiny_score(job)
    records = {"model_record": record_of(job, {}), "score_record": record_of(score, {}, protocol=protocol)}
    return PointResult(job=job, score=score, metrics=metrics, **records)


def test_front_equals_brute_force_with_ties():
    generator = np.random.default_rng(0)
    for _ in range(50):
        costs, scores = generator.integers(0, 4, 8), generator.integers(0, 4, 8)
        expected = [
            not any(
                costs[j] <= costs[i] and scores[j] <= scores[i] and (costs[j] < costs[i] or scores[j] < scores[i])
                for j in range(8)
            )
            for i in range(8)
        ]
        assert non_dominated(costs, scores).tolist() == expected


def test_equal_points_stay_on_the_front_together():
    assert front([point(1.0, 10), point(1.0, 10), point(2.0, 20)], "params_total") == [True, True, False]


def test_front_does_not_depend_on_the_order():
    points = [point(3.0, 10), point(2.0, 20), point(2.5, 30), point(1.0, 40)]
    for order in itertools.permutations(range(4)):
        members = front([points[i] for i in order], "macs")
        assert {i for i, member in zip(order, members, strict=True) if member} == {0, 1, 3}


def test_probability_follows_the_standard_error():
    certain = front_probability([point(2.0, 10), point(1.0, 20), point(3.0, 30)], "params_total")
    assert certain == pytest.approx([1, 1, 0])
    tie = front_probability([point(1.0, 10, stderr=0.1), point(1.0, 20, stderr=0.1)], "params_total")
    assert tie[0] == 1 and tie[1] == pytest.approx(0.5, abs=0.05)
    assert front_probability([point(1.0, 10, stderr=None)], "params_total") == [None]


def test_transfers_are_rows_of_their_own_with_their_schedule_and_what_they_forget():
    def scored(job, fid):
        metrics = dict.fromkeys(("kid", "train_s", "eval_s", "params_total", "params_trainable", "macs", "serve_bytes"), 1.0)
        return result(job, metrics | {"fid": fid, "forgetting/source_fid": 10 * fid})

    jobs = [tiny_transfer("full"), tiny_transfer("diff-tuning"), tiny_transfer("full", seed=1)]
    full, tuned = points_from([scored(job, fid) for fid, job in enumerate(jobs, start=1)], MethodNames(jobs))
    assert (full.label, full.num_seeds, full.source_fid, full.distance) == ("full L2-D16", 2, 20.0, None)
    assert tuned.label == "diff-tuning linear retention weight 0.5 source ratio 0.25 L2-D16" and tuned.trial_ids == jobs[1].id
    rows = report_rows([full, tuned])
    assert [row["method_front_params_total"] for row in rows] == [True, True], "each is the front of its own method"
    assert {row["protocol"] for row in rows} == {str(PROTOCOL)}, "as people read it"
    other = tiny_transfer("full", base=tiny_base("scratch"))
    both = [scored(job, 1) for job in (*jobs, other)]
    names = {p.method for p in points_from(both, MethodNames(found.job for found in both))}
    assert names >= {"full from fine", "full from scratch"}
    searched = MethodNames(jobs, tuned=[jobs[1].id, jobs[1].base.id])
    assert {p.method for p in points_from(both[:3], searched)} == {"full", "diff-tuning tuned"}
    assert searched.of(jobs[1].base) == "fine 4 sigma steps"


def test_different_protocols_never_share_a_front():
    with pytest.raises(ValueError, match="different protocols"):
        front([point(1.0, 10), point(1.0, 20, protocol=OTHER)], "params_total")


def test_scores_of_different_protocols_are_points_of_their_own():
    costs = {"params_total": 5, "params_trainable": 5, "macs": 6, "serve_bytes": 7, "train_s": 1.0, "eval_s": 1.0}
    results = [
        result(tiny_base(seed=seed), costs | {"fid": float(seed)}, protocol)
        for protocol in (PROTOCOL, OTHER)
        for seed in (1, 3)
    ]
    groups = by_protocol(points_from(results, MethodNames(found.job for found in results)))
    assert {protocol: [(p.fid, p.num_seeds) for p in points] for protocol, points in groups.items()} == {
        PROTOCOL: [(2.0, 2)],
        OTHER: [(2.0, 2)],
    }


def test_a_point_has_a_result_once_its_model_and_all_its_scores_are_there(tmp_path):
    store, planned = Store(tmp_path / "store"), tiny_point(tiny_transfer("full"))
    (tmp_path / "made").mkdir()
    metrics = {
        planned.model: {"params_total": 5, "train_s": 2.0, "job_s": 3.0, "peak_memory_bytes": 10},
        planned.score: {"fid": 1.0, "eval_s": 4.0, "job_s": 5.0, "peak_memory_bytes": 7},
        planned.forgetting: {"fid": 30.0, "eval_s": 6.0, "job_s": 7.0, "peak_memory_bytes": 8},
        planned.forgetting_before: {"fid": 20.0, "eval_s": 8.0, "job_s": 9.0, "peak_memory_bytes": 9},
    }
    for job, values in metrics.items():
        assert point_result(planned, store) is None
        store.publish(job, tmp_path / "made", record_of(job, values))
    found = point_result(planned, store)
    assert found.metrics == {
        "params_total": 5,
        "train_s": 2.0,
        "fid": 1.0,
        "eval_s": 4.0,
        "job_s": 8.0,
        "peak_memory_bytes": 10,
        "forgetting/source_fid": 30.0,
        "forgetting/source_fid_before": 20.0,
        "forgetting/eval_s": 6.0,
    }
    assert (found.id, found.protocol) == (planned.model.id, store.record(planned.score).protocol)
    unforgotten = point_result(replace(planned, forgetting=None, forgetting_before=None), store)
    assert not any(name.startswith("forgetting/") for name in unforgotten.metrics)


def test_seeds_are_averaged_with_their_standard_error():
    def scored(job, fid):
        costs = {"params_total": 5, "params_trainable": 5, "macs": 6, "serve_bytes": 7}
        metrics = {"fid": fid, "kid": 0.0, "train_s": 1.0, "eval_s": 1.0}
        return result(job, metrics | costs)

    results = [scored(tiny_base("fine", seed=i), fid) for i, fid in enumerate([1.0, 2.0, 3.0])]
    results += [scored(tiny_base("scratch"), 9.0)]
    fine, scratch = points_from(results, MethodNames(found.job for found in results))
    assert (fine.fid, fine.num_seeds) == (2.0, 3) and fine.fid_stderr == pytest.approx(1 / 3**0.5)
    assert scratch.fid_stderr is None and scratch.label == "scratch L2-D16"
    rows = report_rows([fine, scratch])
    assert [row["front_params_total"] for row in rows] == [True, False] and rows[0]["front_probability"] is None


def test_every_metric_that_was_computed_is_a_column_and_those_asked_for_come_first_in_a_wide_table():
    plain = point(1.0, 10)
    (row,) = report_rows([plain])
    assert row["kid"] == 0.1 and row["recall"] is None and "metrics" not in row
    assert [name for name in row if name in METRICS] == list(DEFAULT_METRICS)
    (row,) = report_rows([replace(plain, metrics=plain.metrics | {"mind": 7.0})])
    assert row["mind"] == 7.0 and "density" not in row
    shown = {}
    for width in (80, WIDE_TERMINAL, 200):
        text = StringIO()
        show_front(Console(file=text, width=width), [row])
        shown[width] = [label for label in ("MIND", "KID") if label in text.getvalue()]
    assert shown == {80: [], WIDE_TERMINAL: ["MIND"], 200: ["MIND", "KID"]}
