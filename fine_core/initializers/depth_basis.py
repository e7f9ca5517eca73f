"""Blocks as fixed mixtures of shared ones: theta_l = sum_k c_(l,k) T_k for every tensor of a block, with given c.

Share-Init and SWS take one template for each stage of layers; TLEG takes two, the second in proportion to the depth.
Shapes: L depth, K templates.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from fine_core.dit import DiT, DiTConfig, ModelSize
from fine_core.initializers.inherited import ConstrainedInheritance, Inherited, Tensors, fresh_model, other_width
from fine_core.initializers.matrices import BLOCK_TENSORS, POSITIONS, outer_tensors
from fine_core.initializers.rebuilt import RebuiltDiT

TEMPLATE = "template."


def mixed_state(templates: Tensors, coefficients: Tensor) -> Tensors:
    """The blocks' state for templates (K, ...) of every block tensor and coefficients (L, K)."""
    state = {}
    for name, template in templates.items():
        tensors = torch.tensordot(coefficients, template, dims=1)  # (L, ...)
        state |= {f"blocks.{layer}.{name}": tensor for layer, tensor in enumerate(tensors.unbind(0))}
    return state


class MixedDiT(RebuiltDiT):
    """A DiT of shared templates (K, ...), all trainable, with fixed coefficients (L, K)."""

    def __init__(self, config: DiTConfig, templates: Tensors, outer: Tensors, coefficients: Tensor) -> None:
        super().__init__(config)
        self.templates = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(t) for name, t in templates.items()})
        self.outer = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(t) for name, t in outer.items()})
        self.register_buffer("coefficients", coefficients, persistent=False)

    def tensors(self) -> tuple[Tensors, Tensors]:
        """Templates and outer tensors by the names of a DiT's."""
        templates, outer = (
            {name.replace("/", "."): tensor for name, tensor in held.items()} for held in (self.templates, self.outer)
        )
        return templates, outer

    def dense_state(self, width: int | None = None) -> Tensors:
        templates, outer = self.tensors()
        with torch.autocast(self.coefficients.device.type, enabled=False):  # the mixtures are fp32 in any precision
            blocks = mixed_state(templates, self.coefficients)
        return outer | blocks | {POSITIONS: self.positions()}


class DepthBasis(ConstrainedInheritance):
    """Keeps templates of a block, and makes any depth of them at the source's width."""

    @abstractmethod
    def coefficients(self, depth: int) -> Tensor:
        """c (L, K) of a model with so many blocks."""

    @abstractmethod
    def scales(self) -> tuple[float, ...]:
        """(K,) by how much the initial templates are smaller than DiT's own block tensors."""

    def refusal(self, source: ModelSize, target: ModelSize) -> str | None:
        return other_width(source, target)

    def constrained(self, source: DiTConfig, *, seed: int) -> MixedDiT:
        """Templates start as blocks of DiT's own initialization, scaled: adaLN is 0 in all."""
        size = ModelSize(depth=len(self.scales()), width=source.size.width, num_heads=source.size.num_heads)
        state = fresh_model(DiTConfig(**{**vars(source), "size": size}), seed).state_dict()
        templates = {
            name: torch.stack([scale * state[f"blocks.{k}.{name}"] for k, scale in enumerate(self.scales())])
            for name in BLOCK_TENSORS
        }
        return MixedDiT(source, templates, outer_tensors(state), self.coefficients(source.size.depth))

    def keep_of(self, trained: RebuiltDiT) -> Tensors:
        assert isinstance(trained, MixedDiT)
        templates, outer = trained.tensors()
        kept = outer | {TEMPLATE + name: tensor for name, tensor in templates.items()}
        return {name: tensor.detach().cpu().clone() for name, tensor in kept.items()}

    def keep(self, ancestor: DiT) -> Tensors:
        """The templates with the least squared error over all layers."""
        state, depth = ancestor.state_dict(), len(ancestor.blocks)
        fit = torch.linalg.pinv(self.coefficients(depth).double())  # (K, L)
        kept = outer_tensors(state)
        for name in BLOCK_TENSORS:
            layers = torch.stack([state[f"blocks.{layer}.{name}"] for layer in range(depth)])
            fitted = torch.tensordot(fit.to(layers.device), layers.double(), dims=1)
            kept[TEMPLATE + name] = fitted.to(layers.dtype)
        return kept

    def _start(self, inherited: Inherited, target: DiTConfig, seed: int) -> DiT:
        model = fresh_model(target, seed)
        tensors = inherited.tensors
        templates = {n.removeprefix(TEMPLATE): t for n, t in tensors.items() if n.startswith(TEMPLATE)}
        outer = {name: tensor for name, tensor in tensors.items() if not name.startswith(TEMPLATE)}
        model.load_state_dict(outer | mixed_state(templates, self.coefficients(target.size.depth)), strict=False)
        return model
