"""Loss weights over timesteps (T,) for eps-prediction, the baselines of Diff-Tuning's comparison."""

from __future__ import annotations

from torch import Tensor

from fine_core.parameterizations.ddpm import Diffusion

MIN_SNR_GAMMA = 5.0


def signal_to_noise() -> Tensor:
    """SNR(t) = alpha_bar / (1 - alpha_bar)."""
    diffusion = Diffusion()
    return (diffusion.sqrt_alpha_bar / diffusion.sqrt_one_minus_alpha_bar).square()


def p2_weights() -> Tensor:
    """1 / (k + SNR)^gamma with k = gamma = 1 (Choi et al., "Perception prioritized training", arXiv 2204.00227, eq. 8)."""
    return 1 / (1 + signal_to_noise())


def min_snr_weights() -> Tensor:
    """min(SNR, gamma) / SNR (Hang et al., "Min-SNR weighting", arXiv 2303.09556, section 3.4, for eps)."""
    snr = signal_to_noise()
    return snr.clamp(max=MIN_SNR_GAMMA) / snr
