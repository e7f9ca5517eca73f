"""The training loop: resuming equals not stopping, only declared parameters move, nothing depends on the batching."""

import pytest
import torch

from fine_core.data.registry import load_dataset
from fine_core.dit import DiT
from fine_core.initializers.fine.factorized import FactorizedDiT
from fine_core.initializers.matrices import BLOCK_MATRICES
from tests.tiny import DyingContext, Killed, random_learngene, same, tiny_base, tiny_learngene
from trainables.initializations.fine import FineRecipe
from trainables.initializations.scratch import ScratchRecipe
from trainables.jobs.learngene import LearngeneRecipe
from trainables.training.batches import DenoisingBatches
from trainables.training.context import LocalContext
from trainables.training.loop import TrainingDiverged, train
from trainables.training.order import BatchOrder


def recipe(kind: str):
    if kind == "learngene":
        return LearngeneRecipe(tiny_learngene())
    return recipe_for(tiny_base(kind))


def recipe_for(trial):
    start = trial.initialization
    return FineRecipe(trial, start, random_learngene()) if start.name == "fine" else ScratchRecipe(trial)


def train_recipe(trained, training, context: LocalContext, every: int):
    data = load_dataset("digits", "train")
    batches = DenoisingBatches(data, training, null_label=10, seed=0, device=context.device)
    return train(trained, batches=batches, training=training, run=context, checkpoint_every_steps=every)


def run(kind: str, context: LocalContext, every: int = 3):
    training = tiny_learngene().training if kind == "learngene" else tiny_base(kind).training
    return train_recipe(recipe(kind), training, context, every)


@pytest.mark.parametrize("kind", ["scratch", "fine", "learngene"])
@pytest.mark.parametrize("after_reports", [1, 2, 3])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(kind, after_reports, tmp_path):
    expected, progress = run(kind, LocalContext(tmp_path / "whole"))
    with pytest.raises(Killed):
        run(kind, DyingContext(tmp_path / "killed", after_reports=after_reports))
    resumed, resumed_progress = run(kind, LocalContext(tmp_path / "killed"))
    assert same(expected, resumed)
    losses = [(e["step"], e["train/loss"]) for e in progress.history]
    assert [(e["step"], e["train/loss"]) for e in resumed_progress.history] == losses
    assert progress.step == 8


def test_checkpoint_cadence_does_not_change_the_weights(tmp_path):
    first, _ = run("fine", LocalContext(tmp_path / "a"), every=1)
    second, _ = run("fine", LocalContext(tmp_path / "b"), every=100)
    assert same(first, second)


def test_fine_trains_sigma_then_all_of_a_dense_model(tmp_path):
    fine = recipe("fine")
    assert [phase.name for phase in fine.phases] == ["sigma", "free"]
    assembled = fine.model_for(0, None)
    assert isinstance(assembled, FactorizedDiT)
    merged = fine.model_for(1, assembled)
    assert isinstance(merged, DiT)
    frozen = [name for name, p in merged.named_parameters() if not p.requires_grad]
    assert frozen == ["pos_embed"]
    context = LocalContext(tmp_path / "run")
    run("fine", context, every=4)
    assert [report["phase"] for report in context.reports] == ["sigma", "free"]
    assert [report["step"] for report in context.reports] == [4, 8]


def test_sigma_phase_moves_nothing_but_sigma(tmp_path):
    trial = tiny_base("fine", steps=4, sigma_steps=4)
    sigma_only = recipe_for(trial)
    sigma_only.phases = sigma_only.phases[:1]
    start = sigma_only.model_for(0, None)
    end, _ = train_recipe(sigma_only, trial.training, LocalContext(tmp_path / "run"), 4)
    moved = {name for (name, a), b in zip(start.named_parameters(), end.parameters(), strict=True) if not torch.equal(a, b)}
    assert moved == {f"sigma.16.{m}" for m in BLOCK_MATRICES}


def test_zero_steps_return_the_assembled_model(tmp_path):
    trial = tiny_base("fine", steps=0, sigma_steps=0)
    model, progress = train_recipe(recipe_for(trial), trial.training, LocalContext(tmp_path / "run"), 4)
    assert isinstance(model, DiT) and progress.step == 0


def test_training_learns(tmp_path):
    trial = tiny_base("scratch", steps=150, lr=4e-3)
    _, progress = train_recipe(recipe_for(trial), trial.training, LocalContext(tmp_path / "run"), 50)
    assert progress.history[-1]["train/loss"] < 0.5 * progress.history[0]["train/loss"]


def test_a_diverging_loss_is_named_with_its_step(tmp_path):
    trial = tiny_base("scratch", steps=40, lr=1e18)
    with pytest.raises(TrainingDiverged, match=r"by step \d+; try a lower learning rate"):
        train_recipe(recipe_for(trial), trial.training, LocalContext(tmp_path / "run"), 20)


def test_an_epoch_touches_each_row_once():
    order = BatchOrder(num_rows=10, batch_size=4, seed=0)
    rows = torch.cat([order.rows(step) for step in range(5)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    assert torch.equal(BatchOrder(10, 4, 0).rows(3), order.rows(3))
    wide = BatchOrder(num_rows=3, batch_size=8, seed=0).rows(1)
    assert len(wide) == 8 and sorted(wide[1:4].tolist()) == [0, 1, 2]


def test_gradient_clipping_changes_the_training_only_where_it_is_on(tmp_path):
    def weights(name, **training):
        trial = tiny_base("scratch", steps=4, **training)
        model, _ = train_recipe(recipe_for(trial), trial.training, LocalContext(tmp_path / name), 4)
        return model

    plain = weights("plain")
    assert same(plain, weights("loose", grad_clip=1e9))  # the norm is never reached
    assert not same(plain, weights("tight", grad_clip=1e-8))  # so small that AdamW's epsilon shows
