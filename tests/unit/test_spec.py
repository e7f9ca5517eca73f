"""Ids are stable hashes of content; bad values are refused where they enter."""

from dataclasses import FrozenInstanceError, replace

import pytest

from tests.tiny import tiny_base, tiny_learngene
from trainables.specs.base import TrainingSpec
from trainables.specs.models import model_config


def test_equal_specs_have_equal_ids_and_any_change_makes_another():
    trial = tiny_base()
    assert trial.id == tiny_base().id and len(trial.id) == 12
    others = [
        tiny_base("scratch"),
        tiny_base(seed=1),
        tiny_base(steps=9),
        replace(trial, initialization=replace(trial.initialization, learngene=tiny_learngene(steps=9))),
        replace(trial, evaluation=replace(trial.evaluation, num_samples=21)),
    ]
    assert len({trial.id, *(other.id for other in others)}) == 6


def test_ids_do_not_depend_on_the_process():
    """A frozen value: if it changes, SPEC_VERSION or the spec did, and finished trials of users are computed again."""
    assert tiny_base("scratch").id == "846ba6b12e0f"


def test_specs_are_frozen():
    with pytest.raises(FrozenInstanceError):
        tiny_base().seed = 3


def test_a_trial_names_what_it_needs():
    assert [need.kind for need in tiny_base("fine").needs] == ["extractor", "learngene"]
    assert [need.kind for need in tiny_base("scratch").needs] == ["extractor"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"steps": -1}, "steps is -1"), ({"steps": 1, "lr": 0}, "lr is 0"), ({"steps": 1, "ema_decay": 1}, "ema_decay")],
)
def test_bad_training_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainingSpec(**fields)


def test_sigma_steps_count_into_the_steps():
    with pytest.raises(ValueError, match="between 0 and steps"):
        tiny_base("fine", steps=3, sigma_steps=4)


def test_unknown_dataset_is_refused():
    with pytest.raises(ValueError, match="unknown dataset 'cats'; choose one of digits"):
        model_config("cats", tiny_base().size, patch_size=2)
