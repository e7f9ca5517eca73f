"""The schedule against diffusers, the variational term against a direct computation."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from fine_core.parameterizations.ddpm import DDPM, NUM_TIMESTEPS, tables
from fine_core.parameterizations.losses import training_losses
from fine_core.parameterizations.variational import discretized_log_likelihood, normal_cdf

DIFFUSION = DDPM()


def test_noising_equals_diffusers():
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    x, noise, t = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8), torch.tensor([0, 10, 500, 999])
    torch.testing.assert_close(DIFFUSION.corrupt(x, t, noise), scheduler.add_noise(x, noise, t), atol=1e-5, rtol=1e-4)


def test_variational_term_vanishes_for_the_true_posterior():
    """With the true noise and the posterior variance (v = -1) the KL is 0, so that only the (zero) MSE is left."""
    x0, noise = torch.randn(64, 2, 4, 4).clamp(-1, 1), torch.randn(64, 2, 4, 4)
    t = torch.randint(1, NUM_TIMESTEPS, (64,))
    perfect = torch.cat([noise, -torch.ones_like(noise)], dim=1)
    assert training_losses(DIFFUSION, lambda x, t, c: perfect, x0, t, {}, noise).abs().max() < 1e-3


def test_variational_term_is_the_gaussian_kl_in_bits():
    t = torch.tensor([400])
    x0, noise = torch.full((1, 1, 2, 2), 0.3), torch.randn(1, 1, 2, 2)
    output = torch.cat([noise, torch.ones_like(noise)], dim=1)  # the upper variance, beta
    loss = training_losses(DIFFUSION, lambda x, t, c: output, x0, t, {}, noise)
    true, guess = (
        torch.distributions.Normal(0.0, math.exp(0.5 * table[400].item()))
        for table in (tables(t.device)["log_posterior_variance"], tables(t.device)["log_beta"])
    )
    expected_bits = torch.distributions.kl_divergence(true, guess).item() / math.log(2)
    assert loss.item() == pytest.approx(expected_bits, rel=1e-3)


def test_first_step_scores_every_byte_of_the_image():
    """At t = 0 the term is a discrete likelihood: over all 256 values its probabilities sum to 1."""
    values = torch.arange(256) / 127.5 - 1
    mean, log_scale = torch.tensor(0.2), torch.tensor(math.log(0.3))
    assert abs(discretized_log_likelihood(values, mean, log_scale).exp().sum().item() - 1) < 1e-3


def test_hybrid_loss_trains_the_variance_without_moving_the_mean():
    eps = torch.randn(8, 1, 4, 4, requires_grad=True)
    variance = torch.zeros(8, 1, 4, 4, requires_grad=True)
    x0, noise, t = torch.rand(8, 1, 4, 4), torch.randn(8, 1, 4, 4), torch.randint(0, 1000, (8,))
    training_losses(DIFFUSION, lambda *_: torch.cat([eps, variance], 1), x0, t, {}, noise).sum().backward()
    torch.testing.assert_close(eps.grad, 2 * (eps.detach() - noise) / 16)
    assert variance.grad.abs().min() > 0


def test_distilled_samples_follow_the_teacher_and_the_others_the_noise():
    x0, noise, t = torch.randn(4, 1, 4, 4), torch.randn(4, 1, 4, 4), torch.tensor([3, 200, 600, 999])
    y, distilled = torch.tensor([0, 1, 2, 2]), torch.tensor([False, True, False, True])
    conditions = {"y": y}
    student, teacher = (lambda x, t, c: 0.5 * x), (lambda x, t, c: 0.25 * x + c["y"][:, None, None, None])
    losses = training_losses(DIFFUSION, student, x0, t, conditions, noise, teacher=teacher, distilled=distilled)
    x_t = DIFFUSION.corrupt(x0, t, noise)
    distance = (student(x_t, t, conditions) - teacher(x_t, t, conditions)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses[distilled], distance[distilled])
    alone = training_losses(DIFFUSION, student, x0, t, conditions, noise)
    torch.testing.assert_close(losses[~distilled], alone[~distilled])


def test_the_normal_distribution_is_approximated_as_in_the_public_code():
    x = torch.linspace(-6, 6, 200, dtype=torch.float64)
    exact = torch.distributions.Normal(0.0, 1.0).cdf(x)
    assert (normal_cdf(x) - exact).abs().max() < 5e-4 and torch.allclose(normal_cdf(x), 1 - normal_cdf(-x))
    assert normal_cdf(torch.tensor(math.nan)).isnan()


def test_a_loss_with_learned_variance_that_is_not_finite_is_returned_and_raises_nothing():
    x0, t = torch.rand(2, 1, 4, 4), torch.tensor([0, 500])
    nan = torch.full((2, 2, 4, 4), math.nan)
    losses = training_losses(DIFFUSION, lambda x, t, c: nan, x0, t, {}, torch.randn_like(x0))
    assert losses.isnan().all()
