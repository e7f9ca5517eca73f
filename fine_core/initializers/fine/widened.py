"""A FINE model wider than its learngene: the rows of all shared tensors grow by maps that are trained together with sigma.

The paper (arXiv 2409.19289) has no experiment with widths; this is ours. The maps are those of `widening`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fine_core.dit import DiTConfig, ModelSize
from fine_core.initializers.fine.factorized import factorized_state
from fine_core.initializers.rebuilt import RebuiltDiT
from fine_core.initializers.widening import WidthMaps, widen


class WidenedDiT(RebuiltDiT):
    """A learngene's shared tensors, fixed, under the names used in `WIDTH_AXES`; sigma (L, R) and the maps are trainable.

    Raises ValueError unless the model is wider than its source, with heads of the same size.
    """

    def __init__(self, config: DiTConfig, source: ModelSize, shared: dict[str, Tensor], sigma: dict[str, Tensor]) -> None:
        super().__init__(config)
        self.maps = WidthMaps(source, config.size, noise=0.0, generator=torch.Generator())
        self.sigma = nn.ParameterDict({m: nn.Parameter(value.clone()) for m, value in sigma.items()})
        self.fixed = nn.ParameterDict(
            {name.replace(".", "/"): nn.Parameter(t.clone(), requires_grad=False) for name, t in shared.items()}
        )

    @property
    def rank(self) -> int:
        return self.sigma["qkv"].shape[1]

    def shared_tensors(self) -> dict[str, Tensor]:
        """All tensors except sigma at the model's own width."""
        maps, fixed = self.maps.full(), {name.replace("/", "."): tensor for name, tensor in self.fixed.items()}
        return {name: widen(tensor, name, maps) for name, tensor in fixed.items()}

    def dense_state(self, width: int | None = None) -> dict[str, Tensor]:
        return factorized_state(self.shared_tensors(), self.sigma, self.positions())
