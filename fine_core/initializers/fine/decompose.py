"""Decompose a given DiT into a learngene: factors U, V shared by all layers and a diagonal sigma per layer.

FINE, arXiv 2409.19289, section 3, decomposes a pre-trained model but does not say how; this algorithm is ours. It starts with
a joint SVD over the layers: U from the W_l concatenated along columns, V from the W_l concatenated along rows. The two bases
are unrelated, so a diagonal sigma between them explains almost nothing. Alternating least squares on
sum_l ||W_l - U diag(sigma_l) V^T||^2 (the canonical polyadic decomposition of the stacked matrices) then aligns them.
Shapes: L depth, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fine_core.dit import DiT
from fine_core.initializers.fine.factorized import FactorizedDiT
from fine_core.initializers.matrices import BLOCK_MATRICES

RIDGE = 1e-9  # share of the mean diagonal, added because columns may become collinear
TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Relative Frobenius errors of one matrix type, over all layers: 0 is exact, 1 is no better than zeros."""

    joint_svd: float
    after_als: float


def _error(weights: Tensor, left: Tensor, sigma: Tensor, right: Tensor) -> float:
    rest = weights - (left * sigma.unsqueeze(1)) @ right.T
    return (rest.square().sum() / weights.square().sum().clamp_min(TINY)).sqrt().item()


def joint_svd(weights: Tensor, rank: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, R), sigma (L, R), V (in, R) of weights (L, out, in), sigma_l = diag(U^T W_l V).

    The singular vectors come from Gram matrices. If the rank exceeds a side's length, random unit columns are added.
    """
    left = _leading((weights @ weights.mT).sum(dim=0), rank, generator)
    right = _leading((weights.mT @ weights).sum(dim=0), rank, generator)
    return left, ((weights.mT @ left) * right).sum(dim=1), right


def _leading(gram: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """The leading eigenvectors (n, R) of a symmetric matrix."""
    vectors = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :rank]
    more = torch.randn(len(gram), rank - vectors.shape[1], generator=generator, dtype=gram.dtype)
    return torch.cat([vectors, more / more.norm(dim=0)], dim=1)


def alternate_least_squares(
    weights: Tensor, left: Tensor, sigma: Tensor, right: Tensor, *, sweeps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve for U, sigma and V in turn, each exactly, `sweeps` times. U and V get unit columns."""
    for _ in range(sweeps):
        # Matrix products first: an einsum over all three would need an intermediate (L, out, in, R).
        left = _unit_columns(_solve(((weights @ right) * sigma.unsqueeze(1)).sum(dim=0), sigma, right), left)
        seen = weights.mT @ left  # (L, in, R)
        right = _unit_columns(_solve((seen * sigma.unsqueeze(1)).sum(dim=0), sigma, left), right)
        sigma = _solve((seen * right).sum(dim=1), left, right)
    return left, sigma, right


def _unit_columns(factor: Tensor, before: Tensor) -> Tensor:
    """Normalize columns. A zero column (nothing to fit: adaLN-Zero) keeps its old value, or it would never get a gradient."""
    norms = factor.norm(dim=0)
    return torch.where(norms > TINY, factor / norms.clamp_min(TINY), before)


def _solve(target: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """The best factor (n, R) for two fixed ones: target (n, R) times the inverse of the product of their Gram matrices."""
    gram = (one.T @ one) * (other.T @ other)  # (R, R)
    ridge = (RIDGE * gram.diagonal().mean()).clamp_min(TINY) * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + ridge, target.T).T


@torch.no_grad()
def decompose(
    model: DiT, *, rank: int, nested_widths: tuple[int, ...] = (), als_sweeps: int = 50, seed: int = 0
) -> tuple[FactorizedDiT, dict[str, Reconstruction]]:
    """A trainable factorized model close to a dense one, and its reconstruction errors by matrix type.

    Biases are averaged over the layers, because the learngene has one set; everything outside the blocks is copied. The
    sigma of `nested_widths` starts as that of the full width, scaled for their shorter columns.
    """
    generator = torch.Generator().manual_seed(seed)
    factorized = FactorizedDiT(model.config, rank=rank, nested_widths=nested_widths)
    width, errors = model.config.size.width, {}
    for matrix, place in BLOCK_MATRICES.items():
        linears = [block.get_submodule(place) for block in model.blocks]
        weights = torch.stack([linear.weight.detach().double().cpu() for linear in linears])  # (L, out, in)
        factors = joint_svd(weights, rank, generator=generator)
        at_start = _error(weights, *factors)
        factors = alternate_least_squares(weights, *factors, sweeps=als_sweeps)
        errors[matrix] = Reconstruction(joint_svd=at_start, after_als=_error(weights, *factors))
        left, sigma, right = factors
        factorized.left[matrix].copy_(left)
        factorized.right[matrix].copy_(right)
        factorized.bias[matrix].copy_(torch.stack([linear.bias for linear in linears]).mean(dim=0))
        for narrower, sigmas in factorized.sigma.items():
            sigmas[matrix].copy_(sigma * (width / int(narrower)) ** 0.5)
    state = model.state_dict()
    for name, parameter in factorized.outer.items():
        parameter.copy_(state[name.replace("/", ".")])
    return factorized, errors
