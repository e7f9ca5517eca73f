"""Full fine-tuning with weighted timesteps: the P2 and min-SNR baselines of Diff-Tuning's comparison."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from trainables.methods.base import TransferData
from trainables.methods.full import FullFineTuning
from trainables.specs.transfers import TransferSpec
from trainables.training.batches import BatchSource


class WeightedFineTuning(FullFineTuning):
    def __init__(self, name: str, weights: Callable[[], Tensor]) -> None:
        self.name, self.weights = name, weights

    def batches(self, transfer: TransferSpec, data: TransferData) -> BatchSource:
        return self.target_batches(transfer, data, weights=self.weights())
