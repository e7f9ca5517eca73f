"""A DiT whose block matrices are factorized over depth: W_l = U diag(sigma_l) V^T with U, V shared by all layers.

FINE, arXiv 2409.19289, section 3 (unofficial implementation). Shapes: L depth, D width, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fine_core.dit import DiT, DiTConfig
from fine_core.initializers.matrices import BLOCK_MATRICES, matrix_shape
from fine_core.initializers.rebuilt import RebuiltDiT
from fine_core.initializers.width import WIDTH_AXES, prefix_rows, select_rows


def sigma_std(matrix: str, width: int, rank: int) -> float:
    """Standard deviation of sigma that gives U diag(sigma) V^T the energy of a Xavier matrix; 0 keeps adaLN-Zero."""
    if matrix == "adaLN":
        return 0.0
    rows, columns = matrix_shape(matrix, width)
    return math.sqrt(2 * rows * columns / (rank * (rows + columns)))


def _unit_columns(rows: int, rank: int) -> nn.Parameter:
    factor = nn.init.orthogonal_(torch.empty(rows, rank))
    return nn.Parameter(factor / factor.norm(dim=0, keepdim=True))  # rank > rows: rows are orthogonal, columns are not


def factorized_state(shared: Mapping[str, Tensor], sigma: Mapping[str, Tensor], positions: Tensor) -> dict[str, Tensor]:
    """A dense DiT's state from tensors under the names used in `WIDTH_AXES` and a sigma (L, R) for each matrix."""
    state = {name.removeprefix("outer."): t for name, t in shared.items() if name.startswith("outer.")}
    state["pos_embed"] = positions
    for m, place in BLOCK_MATRICES.items():
        with torch.autocast(positions.device.type, enabled=False):  # the product and its gradients are fp32 in any precision
            weights = (shared[f"left.{m}"] * sigma[m].unsqueeze(1)) @ shared[f"right.{m}"].T  # (L, out, in)
        for layer, weight in enumerate(weights.unbind(0)):
            state[f"blocks.{layer}.{place}.weight"] = weight
            state[f"blocks.{layer}.{place}.bias"] = shared[f"bias.{m}"]
    return state


class FactorizedDiT(RebuiltDiT):
    """Factors U, V and biases per matrix type, sigma (L, R) per type and width, and the parts outside the blocks.

    Besides its own width the model may run at any of `nested_widths` (heads keep their size): such a width uses the
    first rows of every factor and a sigma of its own.
    """

    def __init__(self, config: DiTConfig, *, rank: int, nested_widths: tuple[int, ...] = ()) -> None:
        super().__init__(config, nested_widths)
        if rank < 1:
            raise ValueError(f"rank is {rank}; it must be at least 1")
        self.rank = rank
        width, depth = config.size.width, config.size.depth
        self.left = nn.ParameterDict({m: _unit_columns(matrix_shape(m, width)[0], rank) for m in BLOCK_MATRICES})
        self.right = nn.ParameterDict({m: _unit_columns(matrix_shape(m, width)[1], rank) for m in BLOCK_MATRICES})
        self.bias = nn.ParameterDict({m: nn.Parameter(torch.zeros(matrix_shape(m, width)[0])) for m in BLOCK_MATRICES})
        self.sigma = nn.ModuleDict({str(w): self._fresh_sigma(w, depth) for w in self.widths})
        outer = {name: p for name, p in DiT(config).named_parameters() if p.requires_grad and not name.startswith("blocks.")}
        self.outer = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(p.detach()) for name, p in outer.items()})

    def _fresh_sigma(self, width: int, depth: int) -> nn.ParameterDict:
        # A prefix of rows has shorter columns; a larger sigma compensates.
        scale = self.config.size.width / width
        return nn.ParameterDict(
            {m: nn.Parameter(torch.randn(depth, self.rank) * sigma_std(m, width, self.rank) * scale) for m in BLOCK_MATRICES}
        )

    def shared_tensors(self) -> dict[str, Tensor]:
        """All tensors except sigma, under the names used in `WIDTH_AXES`."""
        named = {}
        for m in BLOCK_MATRICES:
            named |= {f"left.{m}": self.left[m], f"right.{m}": self.right[m], f"bias.{m}": self.bias[m]}
        return named | {f"outer.{name.replace('/', '.')}": p for name, p in self.outer.items()}

    def dense_state(self, width: int | None = None) -> dict[str, Tensor]:
        """State dict of the dense DiT at `width`, differentiable in all that is trainable."""
        width = width or self.config.size.width
        shared = self.shared_tensors()
        if width != self.config.size.width:
            rows = prefix_rows(self.config.size, self.config.size.at_width(width), self.left["o"].device)
            shared = {name: select_rows(t, WIDTH_AXES[name], rows) for name, t in shared.items()}
        return factorized_state(shared, self.sigma[str(width)], self.positions(width))

    @torch.no_grad()
    def normalize_factors(self) -> None:
        """Give the columns of U and V unit norm and push the norms into sigma: the function stays the same."""
        for m in BLOCK_MATRICES:
            norms = self.left[m].norm(dim=0) * self.right[m].norm(dim=0)  # (R,)
            self.left[m] /= self.left[m].norm(dim=0)
            self.right[m] /= self.right[m].norm(dim=0)
            for sigma in self.sigma.values():
                sigma[m] *= norms
