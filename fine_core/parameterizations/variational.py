"""Terms of the variational bound of DDPM's learned variance, in nats per dimension, elementwise."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL divergence of the first Gaussian from the second."""
    ratio = torch.exp(log_variance1 - log_variance2)
    return 0.5 * (log_variance2 - log_variance1 + ratio - 1 + (mean1 - mean2).square() * torch.exp(-log_variance2))


def normal_cdf(x: Tensor) -> Tensor:
    """The public DiT code's tanh approximation of the normal distribution function. Non-finite numbers stay so."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability of 8-bit images in [-1, 1] under a Gaussian, pixel by pixel (arXiv 2006.11239, equation 13)."""
    half_bin, inverse_scale = 1 / 255, torch.exp(-log_scale)
    upper = normal_cdf((x - mean + half_bin) * inverse_scale)
    lower = normal_cdf((x - mean - half_bin) * inverse_scale)
    upper = torch.where(x > 0.999, torch.ones_like(upper), upper)  # the outermost bins extend to infinity
    lower = torch.where(x < -0.999, torch.zeros_like(lower), lower)
    return (upper - lower).clamp_min(1e-12).log()
