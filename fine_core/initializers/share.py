"""Share-Init and SWS: one block for each stage of layers, copied to every layer of the stage.

Share-Init (one stage) is a baseline of FINE (arXiv 2409.19289, section 4). SWS: "Exploring Learngene via Stage-wise Weight
Sharing for Initializing Variable-sized Models" (arXiv 2404.16897). How the layers of a model are divided among the stages at
other depths than the published 12 is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fine_core.dit import ModelSize
from fine_core.initializers.depth_basis import DepthBasis


def stage_of_layers(depth: int, stages: int) -> list[int]:
    """The stage of each layer: contiguous stages, as equal as can be, the first ones longer. 12 layers in 5: 3, 3, 2, 2, 2."""
    length, longer = divmod(depth, stages)
    return [stage for stage in range(stages) for _ in range(length + (stage < longer))]


@dataclass(frozen=True, kw_only=True)
class Share(DepthBasis):
    """`stages` blocks, each shared by the layers of its stage."""

    stages: int = 1

    def misfit(self, source: ModelSize) -> str | None:
        fits = 1 <= self.stages <= source.depth
        return None if fits else f"stages is {self.stages}; it must be 1 to {source.depth}, the source's depth"

    def refusal(self, source: ModelSize, target: ModelSize) -> str | None:
        if target.depth < self.stages:
            return f"{self.stages} stages need at least {self.stages} layers"
        return super().refusal(source, target)

    def coefficients(self, depth: int) -> Tensor:
        return torch.eye(self.stages)[stage_of_layers(depth, self.stages)]

    def scales(self) -> tuple[float, ...]:
        return (1.0,) * self.stages
