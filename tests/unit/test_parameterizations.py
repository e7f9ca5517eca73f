"""Every parameterization keeps the interface's promises; DDPM draws and weighs as it did when its numbers were written down."""

import pytest
import torch

from fine_core.parameterizations import PARAMETERIZATIONS
from fine_core.parameterizations.losses import training_losses
from fine_core.parameterizations.ranks import BORDER, draw_ranks, level_ranks, levels_of
from fine_core.retention import RetentionSchedule
from tests.velocity import Velocity, register_velocity


@pytest.fixture
def velocity(monkeypatch) -> str:
    return register_velocity(monkeypatch)


@pytest.fixture(params=[*PARAMETERIZATIONS, Velocity.name])
def parameterization(request, velocity):
    return PARAMETERIZATIONS[request.param]


def pictures(seed: int, n: int = 50) -> torch.Tensor:
    return torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_a_perfect_network_has_no_loss_and_gives_the_images_back(parameterization):
    x0, noise, t = pictures(0), pictures(1), parameterization.times(level_ranks(50))
    x_t = parameterization.corrupt(x0, t, noise)
    target = parameterization.target(x0, x_t, t, noise)
    losses = training_losses(parameterization, lambda *_: target, x0, t, {}, noise)
    assert losses.shape == (50,) and losses.abs().max() < 1e-6
    torch.testing.assert_close(parameterization.recover(target, x_t, t), x0, atol=1e-3, rtol=1e-3)
    off = training_losses(parameterization, lambda *_: target + 0.1, x0, t, {}, noise)
    assert off.min() > 1e-4


def test_times_grow_and_the_signal_fades_with_the_rank(parameterization):
    t = parameterization.times(level_ranks())
    assert t.shape == (1000,) and (t.double().diff() > 0).all()
    snr = parameterization.signal_to_noise(t)
    assert (snr.diff() < 0).all() and snr[0] > 100 and snr[-1] < 0.01
    torch.testing.assert_close(snr, torch.stack([parameterization.signal_to_noise(one[None])[0] for one in t]))


def test_a_network_sees_its_own_input_and_time_and_the_teacher_the_same(parameterization):
    x0, noise, t = pictures(2), pictures(3), parameterization.times(level_ranks(50))
    seen = {}

    def network(name, factor):
        def forward(x, time, conditions):
            seen[name] = (x, time, conditions)
            return factor * x

        return forward

    distilled, conditions = torch.arange(50) % 2 == 0, {"y": torch.arange(50)}
    losses = training_losses(
        parameterization,
        network("student", 1.0),
        x0,
        t,
        conditions,
        noise,
        teacher=network("teacher", 0.5),
        distilled=distilled,
    )
    x_t = parameterization.corrupt(x0, t, noise)
    x, time = parameterization.network_input(x_t, t), parameterization.network_time(t)
    assert torch.equal(seen["student"][0], x) and torch.equal(seen["student"][1], time)
    assert torch.equal(seen["teacher"][0], x[::2]) and torch.equal(seen["teacher"][1], time[::2])
    assert seen["teacher"][2]["y"].tolist() == list(range(0, 50, 2))
    torch.testing.assert_close(losses[::2], (0.5 * x[::2]).square().mean(dim=(1, 2, 3)))


def test_the_times_of_its_schedulers_are_in_its_own_units(parameterization):
    """A scheduler's timesteps run over what the network is told in training."""
    told = parameterization.network_time(parameterization.times(level_ranks()))
    again = parameterization.network_time(parameterization.times_of_scheduler(told.float()))
    torch.testing.assert_close(again, told.float())


DDPM = PARAMETERIZATIONS["ddpm"]
UNIFORM = torch.arange(8) * 0.13 + 0.01
DRAWN = {  # timesteps of the target and of the bank
    "power:0.5": ([45, 269, 417, 542, 654, 757, 854, 945], [6, 95, 189, 288, 395, 513, 647, 814]),
    "cutoff:300": ([306, 398, 488, 579, 670, 761, 852, 943], [2, 42, 80, 119, 158, 197, 236, 275]),
    "cosine": ([183, 454, 578, 672, 752, 825, 893, 959], [5, 70, 137, 207, 283, 368, 473, 626]),
}


@pytest.mark.parametrize("schedule", DRAWN)
def test_ddpm_draws_the_timesteps_that_it_always_drew(schedule):
    schedule, (target, source) = RetentionSchedule.parse(schedule), DRAWN[schedule]
    assert DDPM.times(draw_ranks(schedule.target_probabilities(), UNIFORM)).tolist() == target
    assert DDPM.times(draw_ranks(schedule.source_probabilities(), UNIFORM)).tolist() == source


@pytest.mark.parametrize("text", ["linear", "power:3", "complement:0.1", "cosine", "constant", "cutoff:999"])
def test_a_rank_lies_within_the_level_that_was_drawn(text):
    probabilities = RetentionSchedule.parse(text).source_probabilities()
    cumulative = probabilities.cumsum(0)
    last = 1 - 2**-24  # the largest fp32 number below 1
    uniform = torch.cat([torch.rand(20_000), cumulative.float().clamp(max=last), torch.zeros(1)])
    expected = torch.searchsorted(cumulative, uniform.double() * cumulative[-1], right=True).clamp(max=999)
    ranks = draw_ranks(probabilities, uniform)
    assert torch.equal(DDPM.times(ranks), expected) and torch.equal(levels_of(ranks), expected)
    assert ranks.min() > 0 and ranks.max() < 1
    assert ((ranks * 1000 - expected - 0.5).abs() <= 0.5 - BORDER / 2).all()


def test_equal_probabilities_leave_ranks_uniform_and_every_timestep_its_share():
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    ranks = draw_ranks(torch.full((1000,), 1e-3, dtype=torch.float64), uniform)
    torch.testing.assert_close(ranks, uniform, atol=1e-8, rtol=0)
    assert (torch.bincount(DDPM.times(ranks)) == 10).all()
    assert torch.equal(DDPM.times(level_ranks()), torch.arange(1000))


def test_ddpm_gives_the_losses_that_it_always_gave():
    def wave(phase):
        return torch.sin(torch.arange(4 * 16, dtype=torch.float32).reshape(4, 1, 4, 4) * 0.37 + phase)

    x0, noise, t = wave(0.0), wave(1.0), torch.tensor([0, 1, 400, 999])
    corrupted = DDPM.corrupt(x0, t, noise)[:, 0, 0, 0]
    assert corrupted.tolist() == pytest.approx([0.0084147090, -0.3463963569, -0.0495414287, -0.0950654950], rel=1e-5)
    plain = training_losses(DDPM, lambda x, t, c: 0.5 * x, x0, t, {}, noise)
    assert plain.tolist() == pytest.approx([0.3365485966, 0.3489464223, 0.1160117090, 0.1288811415], rel=1e-5)
    learned = training_losses(DDPM, lambda x, t, c: torch.cat([0.5 * x, 0.1 * x], 1), x0, t, {}, noise)
    assert learned.tolist() == pytest.approx([2.1509890556, 0.6021065712, 0.1168569252, 0.1307785362], rel=1e-4)
