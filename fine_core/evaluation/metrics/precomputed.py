"""An extractor that gives back its input: features are taken once, and torchmetrics reads them as they are."""

from __future__ import annotations

from torch import Tensor, nn


class PrecomputedFeatures(nn.Module):
    """The identity, with the attribute that torchmetrics asks extractors for."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features
