"""Transfers as jobs: what they leave in the store, how they are scored, and rungs that the full training goes on from."""

import math
import shutil
from dataclasses import replace

import pytest
import torch

from fine_core.checkpoints.native import load_model, save_model
from fine_core.evaluation.finite import NotFinite
from fine_core.files import file_bytes
from sweeps.planning.costs import result_bytes
from sweeps.results.points import PointResult, point_result
from tests.tiny import (
    TINY_EVALUATION,
    compute,
    output,
    random_dit,
    tiny_bank,
    tiny_base,
    tiny_learngene,
    tiny_point,
    tiny_score,
    tiny_transfer,
)
from trainables.jobs import score
from trainables.jobs.registry import kind_of
from trainables.jobs.shapes import served_parameters
from trainables.jobs.transfer import load_transferred
from trainables.methods import TRANSFER_METHODS
from trainables.specs.scorers import ExtractorSpec
from trainables.specs.scores import ScoreSpec, null_label
from trainables.specs.transfers import RungSpec
from trainables.storage.files import DELTA_FILE, MODEL_FILE, SAMPLES_FILE
from trainables.storage.store import Store, StoreError
from trainables.training.context import LocalContext
from trainables.training.loop import TrainingDiverged


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """A store with a base model, its bank and both extractors."""
    root = tmp_path_factory.mktemp("store")
    needs = [ExtractorSpec(dataset="digits"), ExtractorSpec(dataset="digits-inverted"), tiny_learngene()]
    needs += [tiny_base("fine"), tiny_bank(tiny_base("fine"))]
    for job in needs:
        compute(job, str(root), LocalContext(root / "pad" / job.id))
    return Store(root)


def compute_point(job, store: Store, pad) -> PointResult:
    """A transfer and all its scores."""
    point = tiny_point(job)
    for part in (point.forgetting_before, *point.task.jobs):
        if part is not None:
            compute(part, store, LocalContext(pad), every=3)
    return point_result(point, store)


@pytest.mark.parametrize("method", TRANSFER_METHODS.values(), ids=TRANSFER_METHODS)
def test_a_transfer_leaves_a_delta_a_record_and_the_ledgers_bytes(method, store, tmp_path):
    job = tiny_transfer(method.name)
    result = compute_point(job, store, tmp_path / "pad")
    metrics, record = result.metrics, result.model_record
    assert metrics["serve_bytes"] == file_bytes(store.fetch(job, DELTA_FILE)) == record.files[DELTA_FILE].bytes
    assert metrics["params_trainable"] == method.count_trained(job.model, job.options, job.initialization)
    assert 0 <= metrics["serve_bytes"] - 4 * metrics["params_trainable"] < 8000, "tensors and a header, nothing else"
    assert result_bytes(job) == metrics["serve_bytes"] and result_bytes(job.base) == base_bytes(store, job)
    assert served_parameters(job) == metrics["params_total"]
    assert {"fid", "kid", "train_s", "forgetting/source_fid", "forgetting/tuned_distance"} <= set(metrics)
    assert ("forgetting/distance" in metrics) == method.mergeable
    assert metrics["forgetting/tuned_distance"] > 0 and result.protocol.reference == "digits-inverted:pool"
    assert ("bank_bytes" in metrics) == method.uses_bank(job.options)
    served = load_transferred(job, store)
    assert sum(p.numel() for p in served.parameters()) == metrics["params_total"]


def base_bytes(store: Store, job) -> int:
    return store.record(job.base).metrics["serve_bytes"]


@pytest.mark.parametrize("name", ["diff-tuning", "difffit", "vpt-deep"])
def test_a_transfer_that_goes_on_from_its_rungs_is_that_which_never_stopped(name, store, tmp_path):
    job = tiny_transfer(name, steps=7)
    proxy = replace(TINY_EVALUATION, num_samples=10)
    rungs = [rung_score(job, step) for step in (2, 5)]
    other = Store(shutil.copytree(store.root, tmp_path / "stepwise"))
    pad = tmp_path / "stepwise-pad"  # one training, one pad
    for part in (*rungs, job):
        assert part.run_id == job.id
        compute(part, other, LocalContext(pad), every=3)
    compute(job, store, LocalContext(tmp_path / "pad"), every=3)
    assert other.fetch(job, DELTA_FILE).read_bytes() == store.fetch(job, DELTA_FILE).read_bytes()
    assert [entry["step"] for entry in other.record(job).history] == [2, 3, 5, 6, 7]
    for rung in rungs:
        record = other.record(rung)
        assert (
            record.protocol.num_samples == 10 and math.isfinite(record.metrics["fid"]) and set(record.files) == {SAMPLES_FILE}
        )
    short = replace(job, training=replace(job.training, steps=2))
    compute(short, store, LocalContext(tmp_path / "short"), every=3)
    short_proxy = compute(tiny_score(short, evaluation=proxy), store, LocalContext(tmp_path / "x"))
    expected = short_proxy.metrics["fid"]
    assert other.record(rungs[0]).metrics["fid"] == expected, "a rung scores the averaged weights of its step"


def rung_score(job, step: int) -> ScoreSpec:
    rung = RungSpec(transfer=job, step=step)
    return tiny_score(rung, evaluation=replace(TINY_EVALUATION, num_samples=10), extractor=ExtractorSpec(dataset=job.dataset))


def test_a_rung_is_not_scored_with_later_weights(store, tmp_path):
    """Its record may be lost when its training has gone on."""
    job = tiny_transfer("full", steps=7)
    fids = []
    for folder, first in (("fresh", None), ("after", 6)):
        other = Store(shutil.copytree(store.root, tmp_path / folder))
        context = LocalContext(tmp_path / f"{folder}-pad")
        if first is not None:
            compute(rung_score(job, first), other, context, every=3)
        fids.append(compute(rung_score(job, 2), other, context, every=3).metrics["fid"])
    assert fids[0] == fids[1]


@pytest.mark.parametrize("step", [0, 6, 7])
def test_a_rung_lies_within_its_transfer(step):
    job = tiny_transfer("full", steps=6)
    with pytest.raises(ValueError, match=f"a rung at step {step} is not within the transfer's 6 steps"):
        RungSpec(transfer=job, step=step)


def test_no_steps_give_the_base_model_and_no_distance(store, tmp_path):
    job = tiny_transfer("full", steps=0)
    metrics = compute_point(job, store, tmp_path / "pad").metrics
    assert metrics["forgetting/distance"] == metrics["forgetting/tuned_distance"] == 0
    assert metrics["forgetting/source_fid"] == metrics["forgetting/source_fid_before"], "nothing is forgotten"
    base = load_model(store.fetch(job.base, MODEL_FILE))
    assert torch.equal(output(load_transferred(job, store)), output(base))


@pytest.mark.parametrize("name", ["full", "difffit"])
def test_distances_are_those_of_the_weights(name, store, tmp_path):
    job = tiny_transfer(name)
    metrics = compute(job, store, LocalContext(tmp_path / "pad"), every=3).metrics
    base, served = load_model(store.fetch(job.base, MODEL_FILE)), load_transferred(job, store)
    pairs = zip(base.parameters(), served.parameters(), strict=True)
    assert metrics["forgetting/distance"] == pytest.approx(sum((a - b).square().sum().item() for a, b in pairs), rel=1e-4)
    number = metrics["params_trainable"]
    assert metrics["forgetting/tuned_distance_per_parameter"] == metrics["forgetting/tuned_distance"] / number
    alike = metrics["forgetting/distance"] == pytest.approx(metrics["forgetting/tuned_distance"], rel=1e-4)
    assert alike == (name == "full"), "DiffFit's own coordinates are not the weights"


def test_the_source_is_scored_under_the_null_label(store, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(score, "draw_batch", lambda model, conditions, *a, **k: drawn.append(conditions["y"]) or torch.rand(
        len(conditions["y"]), 1, 8, 8))  # fmt: skip
    point = tiny_point(tiny_transfer("full"))
    other = Store(shutil.copytree(store.root, tmp_path / "store", ignore=shutil.ignore_patterns("score")))
    record = compute(point.forgetting_before, other, LocalContext("unused"))
    assert (torch.cat(drawn) == 10).all() and record.protocol.unconditional and record.protocol.reference == "digits:pool"


def test_a_null_label_has_nothing_to_guide():
    guided = replace(TINY_EVALUATION, sampler=replace(TINY_EVALUATION.sampler, guidance_scale=1.5))
    assert null_label(guided).sampler.passes_per_sample == guided.sampler.passes_per_sample / 2


def test_a_finished_transfer_is_not_computed_again(store, monkeypatch, tmp_path):
    job = tiny_transfer("full")
    compute(job, store, LocalContext(tmp_path / "pad"), every=3)
    monkeypatch.setattr(type(kind_of(job)), "run", lambda *a: pytest.fail("computed again"))
    compute(job, store, LocalContext(tmp_path / "pad"), every=3)


def test_a_delta_is_bound_to_the_bytes_of_its_base(store, tmp_path):
    job = tiny_transfer("difffit")
    other = Store(shutil.copytree(store.root, tmp_path / "store"))
    compute(job, other, LocalContext(tmp_path / "pad"))
    assert other.is_bound(job)
    model = load_model(other.fetch(job.base, MODEL_FILE))
    with torch.no_grad():
        model.final_layer.linear.bias += 1e-3  # the base made again, with other bits
    folder = tmp_path / "made-again"
    save_model(model, folder / MODEL_FILE)
    other.publish(job.base, folder, other.record(job.base))
    assert not other.is_bound(job) and other.is_intact(job)
    with pytest.raises(StoreError, match="was made from other bytes"):
        load_transferred(job, other)


def test_a_model_that_is_not_finite_gets_no_score(store, tmp_path):
    job = tiny_base("scratch", lr=1e30, steps=1)
    other = Store(shutil.copytree(store.root, tmp_path / "store", ignore=shutil.ignore_patterns("score")))
    with pytest.raises((NotFinite, TrainingDiverged)):
        compute(job, other, LocalContext(tmp_path / "pad"))
        compute(tiny_score(job), other, LocalContext(tmp_path / "pad"))
    assert not list(other.records("score"))
    broken = random_dit()
    with torch.no_grad():
        broken.final_layer.linear.bias.fill_(math.nan)
    with pytest.raises(NotFinite, match="tensors of the model are not finite"):
        compute(tiny_score(tiny_base("fine")), other, LocalContext("x"), served=broken)
