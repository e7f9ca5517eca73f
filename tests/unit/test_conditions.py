"""A condition beside the label reaches the model: in a worker's share of a batch, in training, under guidance."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from fine_core.data.registry import load_dataset
from fine_core.denoiser import LABEL, denoiser_of, rows_of, without_label
from fine_core.dit import DiT
from fine_core.sampling.draw import Tail, sample_images
from fine_core.sampling.sampler import SamplerSpec
from tests.tiny import random_dit, tiny_config
from trainables.specs.base import TrainingSpec
from trainables.training.batches import DenoisingBatches
from trainables.training.context import LocalContext
from trainables.training.loop import train
from trainables.training.phase import Phase
from trainables.training.prefetch import prefetch

TRAINING = TrainingSpec(steps=4, batch_size=8)


class Controlled(nn.Module):
    """A DiT that also takes a control image, added to its input. It writes down what it was called with."""

    def __init__(self, dit: DiT) -> None:
        super().__init__()
        self.dit, self.config, self.calls = dit, dit.config, []

    def forward(self, x, t, y, control):
        self.calls.append({"t": t, "y": y, "control": control})
        return self.dit(x + control, t, y)


@dataclass(frozen=True)
class ControlledBatches:
    denoising: DenoisingBatches
    teacher: ClassVar[None] = None

    def batch(self, step: int):
        batch = self.denoising.batch(step)
        return replace(batch, conditions={**batch.conditions, "control": 2 * batch.noise})


@dataclass(frozen=True)
class Recipe:
    model: Controlled
    phases = (Phase(name="free", steps=TRAINING.steps, lr=1e-3),)
    skips_parameters = False

    def model_for(self, phase, previous):
        return self.model

    def forward_options(self, step):
        return {}


@pytest.fixture
def batches() -> ControlledBatches:
    data = load_dataset("digits", "train")
    return ControlledBatches(DenoisingBatches(data, TRAINING, null_label=10, seed=0, device=torch.device("cpu")))


def test_two_workers_get_their_shares_of_every_condition(batches):
    whole = [batches.batch(step) for step in range(3)]
    shares = [list(prefetch(batches, range(3), rank=rank, num_workers=2)) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        for name in (LABEL, "control"):
            joined = torch.cat([part.conditions[name] for _, part, _ in parts])
            assert torch.equal(joined, batch.conditions[name]) and len(parts[1][1].conditions[name]) == 4


def test_the_training_loop_hands_the_model_every_condition(batches, tmp_path):
    model = Controlled(DiT(tiny_config()))
    trained, progress = train(
        Recipe(model), batches=batches, training=TRAINING, run=LocalContext(tmp_path / "run"), checkpoint_every_steps=4
    )
    assert trained is model and progress.step == 4
    for step, call in enumerate(model.calls):
        batch = batches.batch(step)
        assert torch.equal(call["control"], batch.conditions["control"]) and torch.equal(call["y"], batch.conditions[LABEL])
        assert torch.equal(call["t"], (1000 * batch.ranks).long())


def test_guidance_and_the_tail_take_the_label_away_and_leave_the_control():
    model, base = Controlled(random_dit()), Controlled(random_dit(depth=1))
    labels, control = torch.tensor([1, 2, 3]), torch.arange(3.0)[:, None, None, None].expand(3, 1, 8, 8)
    spec = SamplerSpec(sampling_steps=4, guidance_scale=2.0)

    def draw(control):
        generator = torch.Generator().manual_seed(0)
        conditions = {LABEL: labels, "control": control}
        return sample_images(model, conditions, spec, generator=generator, tail=Tail(model=base, steps=1))

    images = draw(control)
    assert [call["y"].tolist() for call in model.calls] == [[1, 2, 3, 10, 10, 10]] * 3
    assert [call["y"].tolist() for call in base.calls] == [[10, 10, 10]]
    assert all(torch.equal(call["control"], torch.cat([control, control])) for call in model.calls)
    assert all(torch.equal(call["control"], control) for call in base.calls)
    assert not torch.equal(draw(torch.zeros_like(control))[1:], images[1:])


def test_conditions_are_sliced_and_lose_their_label_by_name():
    conditions = {LABEL: torch.tensor([4, 5]), "control": torch.tensor([[1.0], [2.0]])}
    part = rows_of(conditions, torch.tensor([False, True]))
    assert part[LABEL].tolist() == [5] and part["control"].tolist() == [[2.0]]
    null = without_label(conditions, 9)
    assert null[LABEL].tolist() == [9, 9] and null["control"] is conditions["control"]
    called = denoiser_of(lambda x, t, y, control, width: (x, t, y.tolist(), width), width=8)(1, 2, conditions)
    assert called == (1, 2, [4, 5], 8)
