"""The autoencoder of a pixel model: an identity, so that `DiTPipeline` can sample without latents."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class PixelVAE(ModelMixin, ConfigMixin):
    """Images (N, C, H, H) are their own latents."""

    @register_to_config
    def __init__(self, scaling_factor: float = 1.0) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1), requires_grad=False)  # diffusers asks a model for its dtype and device

    def decode(self, latents: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=latents)
