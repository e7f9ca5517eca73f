"""Scores of base models on their way: as they start, after the coefficient phase, and between steps."""

import time
from dataclasses import replace

import pytest

import trainables.jobs.score as score_job
from tests.tiny import DyingContext, Killed, compute, same, tiny_base, tiny_score
from trainables.jobs.run import load_served, run_task
from trainables.specs.models import MilestoneSpec
from trainables.specs.tasks import Task
from trainables.storage.store import Store
from trainables.training.context import LocalContext


@pytest.fixture(scope="module")
def needs(tmp_path_factory):
    """A store with what base models and scores need."""
    store = Store(tmp_path_factory.mktemp("store"))
    score = tiny_score(tiny_base("fine"))
    for need in (*tiny_base("fine").needs, score.extractor):
        compute(need, store, LocalContext(f"{store.root}/contexts/{need.id}"))
    return store


def milestones(base, *steps):
    return tuple(tiny_score(MilestoneSpec(base=base, step=step)) for step in steps)


def computed(store, base, scores, context):
    run_task(Task(job=base, scores=scores), store.location, context, checkpoint_every_steps=3)
    return [store.record(score).metrics["fid"] for score in scores]


@pytest.mark.parametrize("method", ["fine", "scratch"])
def test_they_are_those_of_a_training_that_stops_there_and_change_nothing(method, needs, tmp_path):
    base = tiny_base(method, seed=3)  # fine: 4 sigma steps of 8
    steps = (0, 2, 4, 6)
    scores = milestones(base, *steps)
    on_the_way = computed(needs, base, scores, LocalContext(tmp_path / "on-the-way"))
    scored = load_served(base, needs)
    assert len(set(on_the_way)) > 1, "the model moves"
    for job in (base, *scores):
        needs.discard(job)

    computed(needs, base, (), LocalContext(tmp_path / "alone"))
    assert same(scored, load_served(base, needs))
    assert computed(needs, base, scores, LocalContext(tmp_path / "afterwards")) == on_the_way
    for job in (base, *scores):
        needs.discard(job)


def test_a_score_is_of_the_model_that_a_shorter_training_makes(needs, tmp_path):
    base = tiny_base("scratch", seed=4)
    (fid,) = computed(needs, base, milestones(base, 5), LocalContext(tmp_path / "long"))
    short = replace(base, training=replace(base.training, steps=5))
    assert computed(needs, short, (tiny_score(short),), LocalContext(tmp_path / "short")) == [fid]


def test_a_training_that_dies_on_its_way_gives_the_same_scores(needs, tmp_path):
    base = tiny_base("fine", seed=5)
    scores = milestones(base, 0, 2, 4, 6)
    expected = computed(needs, base, scores, LocalContext(tmp_path / "whole"))
    for job in (base, *scores):
        needs.discard(job)
    with pytest.raises(Killed):
        computed(needs, base, scores, DyingContext(tmp_path / "killed", after_reports=2))
    assert computed(needs, base, scores, LocalContext(tmp_path / "killed")) == expected


def test_seconds_of_training_leave_scoring_out(needs, tmp_path, monkeypatch):
    slow_s, take = 0.5, score_job._take_samples

    def take_slowly(*arguments, **options):
        time.sleep(slow_s)
        return take(*arguments, **options)

    monkeypatch.setattr(score_job, "_take_samples", take_slowly)
    base = tiny_base("scratch", seed=6)
    computed(needs, base, milestones(base, 0, 2, 4, 6), LocalContext(tmp_path / "run"))
    assert needs.record(base).metrics["train_s"] < 4 * slow_s


def test_a_milestone_lies_within_the_training():
    base = tiny_base("scratch")
    with pytest.raises(ValueError, match="a milestone at step 8 is not within the base model's 8 steps"):
        MilestoneSpec(base=base, step=8)
