"""Loss weights by signal-to-noise ratio, for networks that predict the noise: the baselines of Diff-Tuning's comparison."""

from __future__ import annotations

from torch import Tensor

from fine_core.parameterizations.base import Parameterization
from fine_core.parameterizations.ranks import level_ranks

MIN_SNR_GAMMA = 5.0


def signal_to_noise(parameterization: Parameterization) -> Tensor:
    """The signal-to-noise ratios (T,) of all levels."""
    return parameterization.signal_to_noise(parameterization.times(level_ranks()))


def p2_weights(snr: Tensor) -> Tensor:
    """1 / (k + SNR)^gamma with k = gamma = 1 (Choi et al., "Perception prioritized training", arXiv 2204.00227, eq. 8)."""
    return 1 / (1 + snr)


def min_snr_weights(snr: Tensor) -> Tensor:
    """min(SNR, gamma) / SNR (Hang et al., "Min-SNR weighting", arXiv 2303.09556, section 3.4, for eps)."""
    return snr.clamp(max=MIN_SNR_GAMMA) / snr
