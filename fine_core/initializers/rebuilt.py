"""DiTs whose weights are rebuilt in every pass from fewer or other tensors, and the dense DiT that such a model amounts to."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fine_core.dit import DiT, DiTConfig, position_table


class RebuiltWeights:
    """Dense weights, built once from their origin for several forward and backward passes. They accumulate the gradients."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state
        self.leaves = {name: tensor.detach().requires_grad_(tensor.requires_grad) for name, tensor in state.items()}

    def backward(self) -> None:
        """Backpropagate the accumulated gradients to what the weights were built from. Call this once, after the last pass."""
        reached = [name for name, leaf in self.leaves.items() if leaf.grad is not None]
        torch.autograd.backward([self.state[name] for name in reached], [self.leaves[name].grad for name in reached])


class RebuiltDiT(nn.Module, ABC):
    """A DiT that has its weights from `dense_state`, at its own width and at any of `widths`.

    Gradients reach whatever is trainable of what the weights are built from.
    """

    def __init__(self, config: DiTConfig, widths: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.config = config
        self.widths = tuple(sorted({config.size.width, *widths}, reverse=True))
        self._skeletons: dict[int, DiT] = {}
        for width in self.widths:
            size = config.size.at_width(width)
            with torch.device("meta"):  # structure only; a plain dict hides it from parameters()
                self._skeletons[width] = DiT(DiTConfig(**{**vars(config), "size": size}))
            self.register_buffer(f"positions_{width}", position_table(self._skeletons[width].config), persistent=False)

    @abstractmethod
    def dense_state(self, width: int | None = None) -> dict[str, Tensor]:
        """State dict of the dense DiT at `width`, differentiable in all that is trainable."""

    def positions(self, width: int | None = None) -> Tensor:
        """The position table (1, T, D) at a width."""
        return getattr(self, f"positions_{width or self.config.size.width}")

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, width: int | None = None, weights: dict[str, Tensor] | None = None
    ) -> Tensor:
        """As `DiT.forward`, at one of the widths; with `weights` that were rebuilt before, if given."""
        skeleton = self._skeletons[width or self.config.size.width]
        return functional_call(skeleton, self.dense_state(width) if weights is None else weights, (x, t, y))

    def rebuild(self, width: int | None = None) -> RebuiltWeights:
        """The weights of a step, for several passes."""
        return RebuiltWeights(self.dense_state(width))

    @property
    def dense_models(self) -> list[DiT]:
        """The dense models that it lends its weights to, one for each width."""
        return list(self._skeletons.values())


def merge(model: RebuiltDiT) -> DiT:
    """The equivalent dense DiT: every layer gets its own copy of weights and biases."""
    dense = DiT(model.config).to(next(model.parameters()).device)
    dense.load_state_dict({name: tensor.detach() for name, tensor in model.dense_state().items()}, strict=True)
    return dense
