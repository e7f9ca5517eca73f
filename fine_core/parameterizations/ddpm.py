"""Gaussian diffusion: the linear 1,000-step schedule and the training losses of DiT.

Ho et al., "Denoising Diffusion Probabilistic Models", arXiv 2006.11239 (schedule, eps-MSE);
Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", arXiv 2102.09672 (learned variance, hybrid loss).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

NUM_TIMESTEPS = 1000
BETA_START, BETA_END = 1e-4, 0.02

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


class Diffusion(nn.Module):
    """The forward process q and its losses. All tensors (N, C, H, H); timesteps (N,), 0 = data side."""

    def __init__(self) -> None:
        super().__init__()
        betas = torch.linspace(BETA_START, BETA_END, NUM_TIMESTEPS, dtype=torch.float64)
        alpha_bar = torch.cumprod(1 - betas, dim=0)
        alpha_bar_prev = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        posterior_variance = betas * (1 - alpha_bar_prev) / (1 - alpha_bar)
        # The posterior variance is 0 at t = 0; its logarithm is clipped to that of t = 1 (arXiv 2102.09672, section 3.1).
        log_posterior_variance = torch.cat([posterior_variance[1:2], posterior_variance[1:]]).log()
        tables = {
            "sqrt_alpha_bar": alpha_bar.sqrt(),
            "sqrt_one_minus_alpha_bar": (1 - alpha_bar).sqrt(),
            "log_beta": betas.log(),
            "log_posterior_variance": log_posterior_variance,
            "posterior_x0_coefficient": betas * alpha_bar_prev.sqrt() / (1 - alpha_bar),
            "posterior_xt_coefficient": (1 - alpha_bar_prev) * (1 - betas).sqrt() / (1 - alpha_bar),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    def _at(self, table: str, t: Tensor) -> Tensor:
        return getattr(self, table)[t][:, None, None, None]

    def noise_images(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t of q(x_t | x_0) for the given noise (arXiv 2006.11239, equation 4)."""
        return self._at("sqrt_alpha_bar", t) * x0 + self._at("sqrt_one_minus_alpha_bar", t) * noise

    def losses(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        t: Tensor,
        y: Tensor,
        noise: Tensor,
        *,
        teacher: Denoiser | None = None,
        distilled: Tensor | None = None,
    ) -> Tensor:
        """Loss of each sample (N,): eps-MSE, plus the variational term when the denoiser also returns a variance.

        For samples where `distilled` (N,) is true the loss is the mean squared distance to the frozen teacher's output on the
        same x_t instead (the KD arm of arXiv 2406.00773).

        The hybrid loss is L_simple + 0.001 L_vlb (arXiv 2102.09672, section 3.1). L_vlb sums NUM_TIMESTEPS terms of which
        one is drawn here, so its weight is 0.001 * 1000 = 1. It gives no gradient to the mean.
        """
        x_t = self.noise_images(x0, t, noise)
        output = denoiser(x_t, t, y)
        losses = self._denoising_losses(output, x0, x_t, t, noise)
        if distilled is None:
            return losses
        with torch.no_grad():
            teacher_output = teacher(x_t[distilled], t[distilled], y[distilled])
        distance = (output[distilled] - teacher_output).square().mean(dim=(1, 2, 3))
        return losses.masked_scatter(distilled, distance)

    def _denoising_losses(self, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        eps = output[:, : x0.shape[1]]
        mse = (eps - noise).square().mean(dim=(1, 2, 3))
        if output.shape[1] == x0.shape[1]:
            return mse
        variance = output[:, x0.shape[1] :]
        return mse + 0.001 * NUM_TIMESTEPS * self._variational_bits(x0, x_t, t, eps.detach(), variance)

    def _variational_bits(self, x0: Tensor, x_t: Tensor, t: Tensor, eps: Tensor, variance: Tensor) -> Tensor:
        """One term of the variational bound, in bits per dimension (N,)."""
        true_mean = self._posterior_mean(x0, x_t, t)
        true_log_variance = self._at("log_posterior_variance", t)
        fraction = (variance + 1) / 2  # the network interpolates between the two log variances (equation 15)
        log_variance = fraction * self._at("log_beta", t) + (1 - fraction) * true_log_variance
        predicted_x0 = (x_t - self._at("sqrt_one_minus_alpha_bar", t) * eps) / self._at("sqrt_alpha_bar", t)
        mean = self._posterior_mean(predicted_x0, x_t, t)
        kl = _gaussian_kl(true_mean, true_log_variance, mean, log_variance)
        nll = -_discretized_log_likelihood(x0, mean, 0.5 * log_variance)
        return torch.where(t == 0, nll.mean(dim=(1, 2, 3)), kl.mean(dim=(1, 2, 3))) / math.log(2)

    def _posterior_mean(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return self._at("posterior_x0_coefficient", t) * x0 + self._at("posterior_xt_coefficient", t) * x_t


def _gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    ratio = torch.exp(log_variance1 - log_variance2)
    return 0.5 * (log_variance2 - log_variance1 + ratio - 1 + (mean1 - mean2).square() * torch.exp(-log_variance2))


def _normal_cdf(x: Tensor) -> Tensor:
    """The public DiT code's tanh approximation of the normal distribution function. Non-finite numbers stay so."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _discretized_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability of 8-bit images in [-1, 1] under a Gaussian, pixel by pixel (arXiv 2006.11239, equation 13)."""
    half_bin, inverse_scale = 1 / 255, torch.exp(-log_scale)
    upper = _normal_cdf((x - mean + half_bin) * inverse_scale)
    lower = _normal_cdf((x - mean - half_bin) * inverse_scale)
    upper = torch.where(x > 0.999, torch.ones_like(upper), upper)  # the outermost bins extend to infinity
    lower = torch.where(x < -0.999, torch.zeros_like(lower), lower)
    return (upper - lower).clamp_min(1e-12).log()
