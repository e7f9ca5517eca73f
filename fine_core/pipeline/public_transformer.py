"""diffusers' DiT with the timestep features of the public DiT code, for models that were trained with them."""

from __future__ import annotations

import functools

from diffusers import DiTTransformer2DModel, ModelMixin

__all__ = ["ModelMixin", "PublicDiTTransformer2DModel"]  # diffusers expects ModelMixin in the module of a class that it loads


class PublicDiTTransformer2DModel(DiTTransformer2DModel):
    """The frequencies' exponent is divided by 128, where diffusers divides it by 127."""

    @functools.wraps(DiTTransformer2DModel.__init__)  # diffusers reads the arguments from the signature
    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        for block in self.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = 0
