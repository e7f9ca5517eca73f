"""DDPM: the network predicts the noise, and the variance of a step where it is learned; linear schedule of 1,000 steps.

Ho et al., "Denoising Diffusion Probabilistic Models", arXiv 2006.11239 (schedule, loss);
Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", arXiv 2102.09672 (learned variance, hybrid loss).
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from fine_core.parameterizations.base import Parameterization
from fine_core.parameterizations.ranks import levels_of
from fine_core.parameterizations.variational import discretized_log_likelihood, gaussian_kl

NUM_TIMESTEPS = 1000
BETA_START, BETA_END = 1e-4, 0.02


@cache
def tables(device: torch.device) -> dict[str, Tensor]:
    """What depends on t alone, by name: tables (T,), fp32."""
    betas = torch.linspace(BETA_START, BETA_END, NUM_TIMESTEPS, dtype=torch.float64, device="cpu")
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    alpha_bar_prev = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    posterior_variance = betas * (1 - alpha_bar_prev) / (1 - alpha_bar)
    # The posterior variance is 0 at t = 0; its logarithm is clipped to that of t = 1 (arXiv 2102.09672, section 3.1).
    log_posterior_variance = torch.cat([posterior_variance[1:2], posterior_variance[1:]]).log()
    in_double = {
        "sqrt_alpha_bar": alpha_bar.sqrt(),
        "sqrt_one_minus_alpha_bar": (1 - alpha_bar).sqrt(),
        "log_beta": betas.log(),
        "log_posterior_variance": log_posterior_variance,
        "posterior_x0_coefficient": betas * alpha_bar_prev.sqrt() / (1 - alpha_bar),
        "posterior_xt_coefficient": (1 - alpha_bar_prev) * (1 - betas).sqrt() / (1 - alpha_bar),
    }
    return {name: table.float().to(device) for name, table in in_double.items()}


def _at(table: str, t: Tensor) -> Tensor:
    return tables(t.device)[table][t][:, None, None, None]


class DDPM(Parameterization):
    """Times are the timesteps 0 (data side) to T - 1, integers; a level's rank is (t + 0.5) / T."""

    name = "ddpm"

    def times(self, ranks: Tensor) -> Tensor:
        return levels_of(ranks, NUM_TIMESTEPS)

    def corrupt(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t of q(x_t | x_0) for the given noise (arXiv 2006.11239, equation 4)."""
        return _at("sqrt_alpha_bar", t) * x0 + _at("sqrt_one_minus_alpha_bar", t) * noise

    def target(self, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return noise

    def recover(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return (x_t - _at("sqrt_one_minus_alpha_bar", t) * prediction) / _at("sqrt_alpha_bar", t)

    def signal_to_noise(self, t: Tensor) -> Tensor:
        """alpha_bar / (1 - alpha_bar)."""
        at = tables(t.device)
        return (at["sqrt_alpha_bar"][t] / at["sqrt_one_minus_alpha_bar"][t]).square()

    def out_channels(self, in_channels: int, *, learn_sigma: bool) -> int:
        return in_channels * (2 if learn_sigma else 1)

    def losses(
        self, output: Tensor, *, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, weights: Tensor | float = 1.0
    ) -> Tensor:
        """Loss of each sample (N,): eps-MSE times its weight, plus the variational term if the output has a variance too.

        The hybrid loss is L_simple + 0.001 L_vlb (arXiv 2102.09672, section 3.1). L_vlb sums NUM_TIMESTEPS terms of which
        one is drawn here, so its weight is 0.001 * 1000 = 1. It gives no gradient to the mean. Weights of noise levels are of
        L_simple alone: those of P2 and min-SNR are derived for it, and the variance is learned at every level alike.
        """
        mse = super().losses(output, x0=x0, x_t=x_t, t=t, noise=noise, weights=weights)
        if output.shape[1] == x0.shape[1]:
            return mse
        eps, variance = output.split(x0.shape[1], dim=1)
        return mse + 0.001 * NUM_TIMESTEPS * self._variational_bits(x0, x_t, t, eps.detach(), variance)

    def _variational_bits(self, x0: Tensor, x_t: Tensor, t: Tensor, eps: Tensor, variance: Tensor) -> Tensor:
        """One term of the variational bound, in bits per dimension (N,)."""
        true_mean = _posterior_mean(x0, x_t, t)
        true_log_variance = _at("log_posterior_variance", t)
        fraction = (variance + 1) / 2  # the network interpolates between the two log variances (equation 15)
        log_variance = fraction * _at("log_beta", t) + (1 - fraction) * true_log_variance
        mean = _posterior_mean(self.recover(eps, x_t, t), x_t, t)
        kl = gaussian_kl(true_mean, true_log_variance, mean, log_variance)
        nll = -discretized_log_likelihood(x0, mean, 0.5 * log_variance)
        return torch.where(t == 0, nll.mean(dim=(1, 2, 3)), kl.mean(dim=(1, 2, 3))) / math.log(2)


def _posterior_mean(x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    return _at("posterior_x0_coefficient", t) * x0 + _at("posterior_xt_coefficient", t) * x_t
