"""Transfers as jobs: what they leave in the store, how they are scored, and rungs that the full training goes on from."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
from trainables.jobs.scoring import score_model

from fine_core.checkpoints.native import load_model
from fine_core.files import file_bytes
from sweeps.planning.costs import predicted_serve_bytes, predicted_served_parameters
from tests.tiny import (
    output,
    random_dit,
    tiny_bank,
    tiny_base,
    tiny_learngene,
    tiny_transfer,
)
from trainables.jobs import run as jobs
from trainables.jobs import scoring
from trainables.jobs.run import run_job
from trainables.jobs.transfer import load_transferred
from trainables.methods import TRANSFER_METHODS
from trainables.specs.scorers import ExtractorSpec
from trainables.specs.transfers import RungSpec
from trainables.storage.files import DELTA_FILE, MODEL_FILE
from trainables.storage.store import Store
from trainables.training.context import LocalContext


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """A store with a base model, its bank and both extractors."""
    root = tmp_path_factory.mktemp("store")
    needs = [ExtractorSpec(dataset="digits"), ExtractorSpec(dataset="digits-inverted"), tiny_learngene()]
    needs += [tiny_base("fine"), tiny_bank(tiny_base("fine"))]
    for job in needs:
        run_job(job, str(root), LocalContext(root / "pad" / job.id), checkpoint_every_steps=4)
    return Store(root)


@pytest.mark.parametrize("method", TRANSFER_METHODS.values(), ids=TRANSFER_METHODS)
def test_a_transfer_leaves_a_delta_a_record_and_the_ledgers_bytes(method, store, tmp_path):
    job = tiny_transfer(method.name)
    run_job(job, store.location, LocalContext(tmp_path / "pad"), checkpoint_every_steps=3)
    record = store.read_record(job)
    metrics = record["metrics"]
    assert metrics["serve_bytes"] == file_bytes(store.fetch(job, DELTA_FILE)) == record["files"][DELTA_FILE]["bytes"]
    assert metrics["params_trainable"] == method.count_trained(job.model, gamma_span=None, rank=16)
    assert 0 <= metrics["serve_bytes"] - 4 * metrics["params_trainable"] < 8000, "tensors and a header, nothing else"
    assert predicted_serve_bytes(job) == metrics["serve_bytes"] and predicted_serve_bytes(job.base) == base_bytes(store, job)
    assert predicted_served_parameters(job) == metrics["params_total"]
    assert {"fid", "kid", "train_s", "forgetting/source_fid", "forgetting/tuned_distance"} <= set(metrics)
    assert ("forgetting/distance" in metrics) == method.mergeable
    assert metrics["forgetting/tuned_distance"] > 0 and "digits-inverted:pool" in record["protocol"]
    assert ("bank_bytes" in metrics) == method.uses_bank
    served = load_transferred(job, store)
    assert sum(p.numel() for p in served.parameters()) == metrics["params_total"]


def base_bytes(store: Store, job) -> int:
    return store.read_record(job.base)["metrics"]["serve_bytes"]


@pytest.mark.parametrize("name", ["diff-tuning", "difffit", "vpt-deep"])
def test_a_transfer_that_goes_on_from_its_rungs_is_that_which_never_stopped(name, store, tmp_path):
    job = tiny_transfer(name, steps=7)
    proxy = replace(job.evaluation, num_samples=10)
    rungs = [RungSpec(transfer=job, step=step, evaluation=proxy) for step in (2, 5)]
    other = Store(shutil.copytree(store.root, tmp_path / "stepwise"))
    pad = tmp_path / "stepwise-pad"  # one training, one pad
    for part in (*rungs, job):
        assert part.run_id == job.id
        run_job(part, other.location, LocalContext(pad), checkpoint_every_steps=3)
    whole = replace(job)
    run_job(whole, store.location, LocalContext(tmp_path / "pad"), checkpoint_every_steps=3)
    assert other.fetch(job, DELTA_FILE).read_bytes() == store.fetch(whole, DELTA_FILE).read_bytes()
    at_once, in_parts = store.read_record(whole), other.read_record(job)
    assert in_parts["metrics"]["fid"] == at_once["metrics"]["fid"]
    assert [entry["step"] for entry in in_parts["history"]] == [2, 3, 5, 6, 7]
    for rung in rungs:
        record = other.read_record(rung)
        assert "| 10 samples |" in record["protocol"] and math.isfinite(record["metrics"]["fid"]) and record["files"] == {}
    short = replace(job, training=replace(job.training, steps=2))
    run_job(short, store.location, LocalContext(tmp_path / "short"), checkpoint_every_steps=3)
    short_proxy = score_model(load_transferred(short, store), proxy, job.extractor, store=store, seed=0, run=LocalContext("x"))
    assert other.read_record(rungs[0])["metrics"]["fid"] == short_proxy.fid, "a rung scores the averaged weights of its step"


def test_a_rung_is_not_scored_with_later_weights(store, tmp_path):
    """Its record may be lost when its training has gone on."""
    job = tiny_transfer("full", steps=7)
    rung = RungSpec(transfer=job, step=2, evaluation=replace(job.evaluation, num_samples=10))
    fids = []
    for folder, first in (("fresh", None), ("after", 6)):
        other = Store(shutil.copytree(store.root, tmp_path / folder))
        context = LocalContext(tmp_path / f"{folder}-pad")
        if first is not None:
            run_job(replace(rung, step=first), other.location, context, checkpoint_every_steps=3)
        run_job(rung, other.location, context, checkpoint_every_steps=3)
        fids.append(other.read_record(rung)["metrics"]["fid"])
    assert fids[0] == fids[1]


@pytest.mark.parametrize("step", [0, 6, 7])
def test_a_rung_lies_within_its_transfer(step):
    job = tiny_transfer("full", steps=6)
    with pytest.raises(ValueError, match=f"a rung at step {step} is not within the transfer's 6 steps"):
        RungSpec(transfer=job, step=step, evaluation=job.evaluation)


def test_no_steps_give_the_base_model_and_no_distance(store, tmp_path):
    job = tiny_transfer("full", steps=0)
    run_job(job, store.location, LocalContext(tmp_path / "pad"), checkpoint_every_steps=3)
    metrics = store.read_record(job)["metrics"]
    assert metrics["forgetting/distance"] == metrics["forgetting/tuned_distance"] == 0
    assert metrics["forgetting/source_fid"] == metrics["forgetting/source_fid_before"], "nothing is forgotten"
    base = load_model(store.fetch(job.base, MODEL_FILE))
    assert torch.equal(output(load_transferred(job, store)), output(base))


@pytest.mark.parametrize("name", ["full", "difffit"])
def test_distances_are_those_of_the_weights(name, store, tmp_path):
    job = tiny_transfer(name)
    run_job(job, store.location, LocalContext(tmp_path / "pad"), checkpoint_every_steps=3)
    metrics = store.read_record(job)["metrics"]
    base, served = load_model(store.fetch(job.base, MODEL_FILE)), load_transferred(job, store)
    pairs = zip(base.parameters(), served.parameters(), strict=True)
    assert metrics["forgetting/distance"] == pytest.approx(sum((a - b).square().sum().item() for a, b in pairs), rel=1e-4)
    number = metrics["params_trainable"]
    assert metrics["forgetting/tuned_distance_per_parameter"] == metrics["forgetting/tuned_distance"] / number
    alike = metrics["forgetting/distance"] == pytest.approx(metrics["forgetting/tuned_distance"], rel=1e-4)
    assert alike == (name == "full"), "DiffFit's own coordinates are not the weights"


def test_the_source_is_scored_under_the_null_label(store, monkeypatch):
    drawn = []
    monkeypatch.setattr(scoring, "draw_batch", lambda model, labels, *a, **k: drawn.append(labels) or torch.rand(
        len(labels), 1, 8, 8))  # fmt: skip
    scores = scoring.score_source(random_dit(), tiny_base("fine"), store, LocalContext("unused"))
    assert (torch.cat(drawn) == 10).all() and "null label" in scores.protocol and "digits:pool" in scores.protocol


def test_a_finished_transfer_is_not_computed_again(store, monkeypatch, tmp_path):
    job = tiny_transfer("full")
    run_job(job, store.location, LocalContext(tmp_path / "pad"), checkpoint_every_steps=3)
    monkeypatch.setattr(jobs, "run_transfer", lambda *a: pytest.fail("computed again"))
    run_job(job, store.location, LocalContext(tmp_path / "pad"), checkpoint_every_steps=3)
