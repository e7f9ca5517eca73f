"""Scores of base models on their way: as they start, after the coefficient phase, and between steps."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import trainables.jobs.score as score_job
from fine_core.dit import DiT
from fine_core.precision import products_in
from tests.tiny import DyingContext, Killed, compute, same, tiny_base, tiny_score
from trainables.initializations import initialization
from trainables.jobs.run import load_served, run_task
from trainables.specs.models import MilestoneSpec
from trainables.specs.tasks import Task
from trainables.storage.store import Store
from trainables.training.computing import StepPlan, dense_models
from trainables.training.context import LocalContext
from trainables.training.loop import pass_milestone
from trainables.training.phase import PhaseTrainer


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


def test_scores_on_the_way_are_outside_the_precision_of_the_training():
    seen = []
    trainer = SimpleNamespace(averaged=lambda: "the model")

    def look(model):
        seen.append((model, torch.backends.cuda.matmul.fp32_precision))

    with products_in("tf32"):
        assert pass_milestone({3: look}, 2, trainer) == 0 and pass_milestone({3: look}, 3, trainer) > 0
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert seen == [("the model", "ieee")]


@pytest.mark.parametrize("method", ["fine", "scratch"])
def test_compiled_models_are_scored_by_an_uncompiled_copy(method, needs):
    base = tiny_base(method)
    recipe = initialization(method).recipe(base, needs)
    model, phase = recipe.model_for(0, None), recipe.phases[0]
    plan = StepPlan(micro_batch=16, recomputes=True, compiles=True)
    trainer = PhaseTrainer(model, phase, base.training, LocalContext("unused"), skips_parameters=False, plan=plan)
    copy = trainer.averaged()
    assert isinstance(copy, DiT) and not copy.recomputes
    assert all(block._compiled_call_impl is None for block in copy.blocks)
    assert all(block._compiled_call_impl is not None for dense in dense_models(model) for block in dense.blocks)
    assert not {p.data_ptr() for p in copy.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_a_milestone_lies_within_the_training():
    base = tiny_base("scratch")
    with pytest.raises(ValueError, match="a milestone at step 8 is not within the base model's 8 steps"):
        MilestoneSpec(base=base, step=8)
