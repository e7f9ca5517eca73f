"""A dense DiT into shared factors: exact where it can be, monotone in what it is given, and honest about the rest."""

import pytest
import torch

from fine_core.dit import DiT
from fine_core.initializers.fine.decompose import alternate_least_squares, decompose, joint_svd
from fine_core.initializers.fine.learngene import Learngene
from fine_core.initializers.matrices import BLOCK_MATRICES
from fine_core.initializers.rebuilt import merge
from tests.tiny import random_dit, random_learngene, tiny_config


def stacked(model: DiT, matrix: str) -> torch.Tensor:
    return torch.stack([block.get_submodule(BLOCK_MATRICES[matrix]).weight.detach().double() for block in model.blocks])


def inputs():
    torch.manual_seed(0)
    return torch.randn(3, 1, 8, 8), torch.tensor([1, 500, 999]), torch.tensor([0, 5, 10])


def test_a_model_of_shared_factors_is_found_again():
    """Merged from a learngene of small rank, so that an exact decomposition exists."""
    learngene = random_learngene()
    source = merge(learngene.assemble(learngene.config.size)).eval()
    found, errors = decompose(source, rank=learngene.rank, als_sweeps=400)
    for matrix, error in errors.items():
        assert error.after_als < 0.06 < 0.5 < error.joint_svd, (matrix, error)
        rebuilt = stacked(merge(found), matrix)
        measured = (rebuilt - stacked(source, matrix)).norm() / stacked(source, matrix).norm()
        assert measured.item() == pytest.approx(error.after_als, abs=1e-5), "the error said is that of the weights"
    with torch.no_grad():
        ours, theirs = merge(found)(*inputs()), source(*inputs())
    assert (ours - theirs).abs().max() < 0.1 * theirs.abs().max()


def test_the_joint_svd_has_orthonormal_factors_and_the_best_sigma_for_them():
    weights = torch.randn(3, 24, 8, dtype=torch.float64)
    left, sigma, right = joint_svd(weights, 6, generator=torch.Generator())
    for factor in (left, right):
        torch.testing.assert_close(factor.T @ factor, torch.eye(6, dtype=torch.float64))
    # U holds the leading left singular vectors of the layers side by side.
    side_by_side = torch.cat(list(weights), dim=1)
    singular = torch.linalg.svd(side_by_side).U[:, :6]
    torch.testing.assert_close((left.T @ singular).abs(), torch.eye(6, dtype=torch.float64), atol=1e-8, rtol=0)
    for layer in range(3):
        torch.testing.assert_close(sigma[layer], (left.T @ weights[layer] @ right).diagonal())


def test_every_sweep_and_every_rank_comes_closer():
    source = random_dit(depth=4)
    weights = stacked(source, "in")

    def error(factors) -> float:
        left, sigma, right = factors
        return (weights - (left * sigma.unsqueeze(1)) @ right.T).norm().item()

    factors = joint_svd(weights, 12, generator=torch.Generator())
    errors = [error(factors)]
    for _ in range(8):
        factors = alternate_least_squares(weights, *factors, sweeps=1)
        errors.append(error(factors))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.9 * errors[0]
    by_rank = [decompose(source, rank=rank)[1]["qkv"].after_als for rank in (4, 8, 16, 24)]
    assert by_rank == sorted(by_rank, reverse=True)


def test_one_layer_is_exact_at_full_rank():
    source = random_dit(depth=1)
    found, errors = decompose(source, rank=source.config.size.width)
    assert all(error.after_als < 1e-6 for error in errors.values())
    with torch.no_grad():
        torch.testing.assert_close(merge(found)(*inputs()), source(*inputs()), atol=1e-4, rtol=1e-4)


def test_zero_matrices_stay_zero():
    source = DiT(tiny_config())  # adaLN-Zero
    found, errors = decompose(source, rank=8)
    assert not stacked(merge(found), "adaLN").any() and errors["adaLN"].after_als == 0
    assert all(factor["adaLN"].norm(dim=0).min() > 0.99 for factor in (found.left, found.right)), "or they would never learn"


def test_what_lies_outside_the_blocks_is_copied_and_a_learngene_can_be_taken():
    source = random_dit(depth=3)
    found, _ = decompose(source, rank=16, nested_widths=(8,))
    learngene = Learngene.from_model(found)
    for name, tensor in source.state_dict().items():
        if not name.startswith("blocks.") and name != "pos_embed":
            assert torch.equal(learngene.shared[f"outer.{name}"], tensor)
    biases = torch.stack([block.attn.qkv.bias for block in source.blocks])
    torch.testing.assert_close(learngene.shared["bias.qkv"], biases.mean(dim=0))
    assert set(learngene.sigma) == {16, 8}
    torch.testing.assert_close(learngene.sigma[8]["o"], learngene.sigma[16]["o"] * 2**0.5)
    assert all(parameter.requires_grad for parameter in found.parameters()), "training under the constraint goes on"
