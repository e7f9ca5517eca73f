"""Retention schedules: the released code's figures, mirror symmetry, parsing; and drawing ranks by probabilities."""

import pytest
import torch

from fine_core.parameterizations import PARAMETERIZATIONS
from fine_core.parameterizations.loss_weights import min_snr_weights, p2_weights, signal_to_noise
from fine_core.parameterizations.ranks import draw_ranks, levels_of
from fine_core.retention import RetentionSchedule

EXAMPLES = ["linear", "power:0.5", "power:2", "complement:0.7", "cosine", "constant", "cutoff:300"]
T = torch.arange(1000, dtype=torch.float64)


@pytest.mark.parametrize("text", ["linear", "power:1", "complement:1"])
def test_slope_1_has_the_published_moments(text):
    schedule = RetentionSchedule.parse(text)
    target, source = schedule.target_probabilities(1000), schedule.source_probabilities(1000)
    assert (target * T).sum().item() == pytest.approx(666, abs=0.01)
    assert target[:100].sum().item() == pytest.approx(0.0101, abs=1e-4)
    assert (source * T).sum().item() == pytest.approx(333, abs=0.01)
    assert source[900:].sum().item() == pytest.approx(0.0101, abs=1e-4)


def test_power_is_that_of_the_released_code():
    schedule = RetentionSchedule.parse("power:0.5")
    expected = torch.tensor([(i + 1) ** 0.5 for i in range(1000)], dtype=torch.float64)
    torch.testing.assert_close(schedule.target_probabilities(1000), expected / expected.sum())
    expected = torch.tensor([(1000 - i) ** 0.5 for i in range(1000)], dtype=torch.float64)
    torch.testing.assert_close(schedule.source_probabilities(1000), expected / expected.sum())


@pytest.mark.parametrize("text", ["power:0", "constant"])
def test_no_slope_is_uniform(text):
    schedule = RetentionSchedule.parse(text)
    uniform = torch.full((1000,), 1e-3, dtype=torch.float64)
    torch.testing.assert_close(schedule.target_probabilities(1000), uniform)
    torch.testing.assert_close(schedule.source_probabilities(1000), uniform)


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_family_adapts_late_and_retains_early(text):
    schedule = RetentionSchedule.parse(text)
    psi, xi = schedule.psi(), schedule.xi()
    assert str(schedule) == text and psi.shape == xi.shape == (1000,)
    assert (psi.diff() >= 0).all() and (xi.diff() <= 0).all()
    assert min(psi.min(), xi.min()) >= 0 and max(psi.max(), xi.max()) <= 1
    assert schedule.target_probabilities(50).sum() == pytest.approx(1) and len(schedule.source_probabilities(50)) == 50


def test_families_differ_where_they_should():
    complement = RetentionSchedule.parse("complement:0.5")
    torch.testing.assert_close(complement.xi(), 1 - (T / 1000) ** 0.5)
    cutoff = RetentionSchedule.parse("cutoff:300")
    assert cutoff.psi()[299] == 0 and cutoff.psi()[300] == 1 and torch.equal(cutoff.xi(), 1 - cutoff.psi())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quadratic", "unknown schedule 'quadratic'; choose one of linear"),
        ("power", "needs a number, such as power:0.5"),
        ("power:x", "needs a number"),
        ("power:-1", "exponent s, 0 or more"),
        ("complement:0", "exponent tau, more than 0"),
        ("cutoff:0", "1 to 999"),
        ("cutoff:1000", "1 to 999"),
        ("linear:2", "takes no number"),
        ("power:nan", "out of range"),
        ("power:inf", "out of range"),
    ],
)
def test_bad_schedules_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        RetentionSchedule.parse(text)


@pytest.mark.parametrize("fields", [{"family": "typo"}, {"family": "cutoff"}, {"family": "linear", "parameter": 2.0}])
def test_specs_cannot_be_built_wrong_either(fields):
    with pytest.raises(ValueError, match="out of range"):
        RetentionSchedule(**fields)


def test_levels_are_drawn_as_often_as_they_are_probable():
    probabilities = torch.tensor([0.5, 0.0, 0.25, 0.25], dtype=torch.float64)
    uniform = (torch.arange(1000) + 0.5) / 1000
    drawn = draw_ranks(probabilities, uniform)
    assert torch.bincount(levels_of(drawn, 4), minlength=4).tolist() == [500, 0, 250, 250]
    assert levels_of(draw_ranks(probabilities, torch.tensor([0.0, 0.9999999])), 4).tolist() == [0, 3]
    torch.testing.assert_close(drawn[:500], uniform[:500].double() / 2)  # within a level ranks are uniform


def test_loss_weights_of_the_baselines():
    snr = signal_to_noise(PARAMETERIZATIONS["ddpm"])
    assert (snr.diff() < 0).all()
    torch.testing.assert_close(p2_weights(snr), 1 / (1 + snr))
    weights = min_snr_weights(snr)
    assert (weights[snr <= 5] == 1).all() and torch.allclose(weights[snr > 5] * snr[snr > 5], torch.tensor(5.0))
