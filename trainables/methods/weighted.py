"""Full fine-tuning with weighted noise levels: the P2 and min-SNR baselines of Diff-Tuning's comparison."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fine_core.parameterizations import PARAMETERIZATIONS
from fine_core.parameterizations.loss_weights import signal_to_noise
from trainables.methods.base import TransferData
from trainables.methods.full import FullFineTuning
from trainables.specs.transfers import TransferSpec
from trainables.training.batches import BatchSource


class WeightedFineTuning(FullFineTuning):
    """`weights`: from signal-to-noise ratios (T,) to loss weights (T,)."""

    def __init__(self, name: str, weights: Callable[[Tensor], Tensor]) -> None:
        self.name, self.weights = name, weights

    def batches(self, transfer: TransferSpec, data: TransferData) -> BatchSource:
        snr = signal_to_noise(PARAMETERIZATIONS[transfer.model.parameterization])
        return self.target_batches(transfer, data, weights=self.weights(snr))
