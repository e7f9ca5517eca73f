"""Starts without a source: Kaiming-normal weights, and attention products that look like those of pre-trained models."""

import math

import numpy as np
import pytest
import torch

from fine_core.dit import DiTConfig, ModelSize
from fine_core.initializers.he import he_
from fine_core.initializers.inherited import fresh_model
from fine_core.initializers.mimetic import mimetic_, query_key_targets, value_output_target
from tests.tiny import output, randomize, same

HE_PLACES = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def config(*, depth: int = 2, width: int = 32, num_heads: int = 4) -> DiTConfig:
    size = ModelSize(depth=depth, width=width, num_heads=num_heads)
    return DiTConfig(size=size, input_size=8, in_channels=1, num_classes=10)


def changed(before, after) -> set[str]:
    return {name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])}


@pytest.mark.parametrize(("start_", "places"), [(he_, HE_PLACES), (mimetic_, ("attn.qkv", "attn.proj"))], ids=["he", "mimetic"])
def test_only_the_named_weights_change_in_place_and_alike_for_a_seed(start_, places):
    before, model = (fresh_model(config(), seed=0) for _ in range(2))
    assert start_(model, seed=5) is model
    assert changed(before, model) == {f"blocks.{layer}.{place}.weight" for layer in range(2) for place in places}
    assert same(model, start_(fresh_model(config(), seed=0), seed=5))
    assert not same(model, start_(fresh_model(config(), seed=0), seed=6))
    assert not torch.equal(model.blocks[0].attn.qkv.weight, model.blocks[1].attn.qkv.weight)
    assert all(parameter.requires_grad for block in model.blocks for parameter in block.parameters())


@pytest.mark.parametrize("start_", [he_, mimetic_], ids=["he", "mimetic"])
def test_the_draws_leave_the_global_generator_alone(start_):
    model = fresh_model(config(), seed=0)
    state = torch.get_rng_state()
    start_(model, seed=5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("start_", [he_, mimetic_], ids=["he", "mimetic"])
def test_every_block_starts_as_the_identity_and_the_output_as_zero(start_):
    model = start_(fresh_model(config(), seed=0), seed=5)
    tokens, condition = torch.randn(2, 16, 32), torch.randn(2, 32)
    assert all(torch.equal(block(tokens, condition), tokens) for block in model.blocks)
    assert not output(model).any()
    assert output(randomize(model)).any(), "the check sees an output that is not zero"


def test_he_weights_have_the_variance_of_two_over_their_inputs():
    model = he_(fresh_model(config(depth=4, width=64, num_heads=8), seed=0), seed=5)
    for place in HE_PLACES:
        weights = torch.stack([block.get_submodule(place).weight for block in model.blocks])
        expected = math.sqrt(2 / (256 if place == "mlp.fc2" else 64))
        assert weights.std().item() == pytest.approx(expected, rel=0.03)  # 4 standard errors of 16,384 weights: 2.2 %
        assert abs(weights.mean().item()) < 4 * expected / math.sqrt(weights.numel())
        scaled = weights / expected
        assert scaled.pow(4).mean().item() == pytest.approx(3, rel=0.12), "normal, not uniform"


def attention_of(block, num_heads: int):
    """W_Q, W_K (H, D, K), W_V, W_proj (D, D) in the paper's convention, x W: what nn.Linear makes of unit vectors."""
    width = block.attn.proj.in_features
    qkv = block.attn.qkv(torch.eye(width)) - block.attn.qkv.bias  # (D, 3 D)
    query, key, value = qkv.detach().double().chunk(3, dim=1)
    query, key = (part.reshape(width, num_heads, -1).movedim(1, 0) for part in (query, key))
    return query, key, value, (block.attn.proj(torch.eye(width)) - block.attn.proj.bias).detach().double()


def test_value_times_projection_is_the_whole_drawn_matrix():
    size = config().size
    model = mimetic_(fresh_model(config(), seed=0), seed=5)
    for layer, block in enumerate(model.blocks):
        drawn = value_output_target(size, seed=5, layer=layer)
        value_weight = block.attn.qkv.weight[2 * size.width :]
        torch.testing.assert_close(block.attn.proj.weight @ value_weight, drawn.T, rtol=1e-4, atol=1e-5)
        _, _, value, projection = attention_of(block, size.num_heads)
        torch.testing.assert_close(value @ projection, drawn.double(), rtol=1e-4, atol=1e-5)
        assert (drawn - drawn.T).abs().max() > 0.1, "the transpose is another matrix"


def test_each_heads_query_times_key_is_the_best_approximation_of_its_own_drawn_matrix():
    size = config().size
    model = mimetic_(fresh_model(config(), seed=0), seed=5)
    for layer, block in enumerate(model.blocks):
        drawn = query_key_targets(size, seed=5, layer=layer).double().numpy()
        query, key, _, _ = attention_of(block, size.num_heads)
        for head in range(size.num_heads):
            u, s, vt = np.linalg.svd(drawn[head])
            best = (u[:, : size.head_dim] * s[: size.head_dim]) @ vt[: size.head_dim]
            np.testing.assert_allclose((query[head] @ key[head].T).numpy(), best, rtol=1e-4, atol=1e-5)
            for factor in (query[head], key[head]):  # the singular values are split evenly
                np.testing.assert_allclose((factor.T @ factor).numpy(), np.diag(s[: size.head_dim]), rtol=1e-4, atol=1e-5)


def test_the_logits_of_a_forward_pass_are_those_of_the_drawn_matrices():
    size = config(num_heads=1).size
    block = mimetic_(fresh_model(config(num_heads=1), seed=0), seed=5).blocks[0]
    tokens = torch.randn(1, 16, 32)
    drawn, projected = query_key_targets(size, seed=5, layer=0)[0], value_output_target(size, seed=5, layer=0)
    attention = (tokens @ drawn @ tokens.mT / math.sqrt(32)).softmax(dim=-1)  # one head as wide as the model: rank D
    torch.testing.assert_close(block.attn(tokens), attention @ tokens @ projected, rtol=1e-3, atol=1e-4)


def test_drawn_products_have_the_published_diagonals_and_noise():
    size = config(width=64, num_heads=8).size
    query_key = torch.cat([query_key_targets(size, seed=5, layer=layer) for layer in range(4)])  # (32, D, D)
    value_output = torch.stack([value_output_target(size, seed=5, layer=layer) for layer in range(32)])
    off_diagonal = ~torch.eye(64, dtype=torch.bool)
    for products, identity, noise in ((query_key, 0.7, 0.7), (value_output, -0.4, 0.4)):
        std, number = noise / math.sqrt(64), products.numel() // 64
        diagonal = products.diagonal(dim1=1, dim2=2)
        assert abs(diagonal.mean().item() - identity) < 4 * std / math.sqrt(number)
        assert diagonal.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * number))
        assert abs(products[:, off_diagonal].mean().item()) < 4 * std / math.sqrt(products.numel())
        assert products[:, off_diagonal].std().item() == pytest.approx(std, rel=0.02)
    assert len({tuple(head.flatten().tolist()) for head in query_key}) == 32, "every head has its own draw"
