"""LiGO: what a small model grows into before and after its coefficients are trained."""

import pytest
import torch

from fine_core.dit import DiT, DiTConfig, ModelSize
from fine_core.initializers.inherited import Inherited
from fine_core.initializers.ligo import GrownDiT, Ligo, stacked_depth
from fine_core.initializers.matrices import BLOCK_MATRICES, BLOCK_TENSORS, POSITIONS
from fine_core.initializers.rebuilt import merge
from fine_core.initializers.widening import copies, widen
from tests.tiny import output, random_dit, same, tiny_config

QUIET = Ligo(depth_noise=0.0)


@pytest.fixture
def small() -> DiT:
    return random_dit(depth=2, width=16)


def inherited(small, form=QUIET) -> Inherited:
    return Inherited(config=small.config, tensors=form.keep(small))


def grown(small, form=QUIET, *, depth: int = 2, width: int = 16, seed: int = 0) -> GrownDiT:
    return form.start(inherited(small, form), tiny_config(depth=depth, width=width), seed=seed)


@torch.no_grad()
def shaken(model: GrownDiT) -> GrownDiT:
    """As after some training of the coefficients."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def test_everything_but_the_positions_is_kept_and_known_from_shapes_alone(small):
    kept = Ligo().keep(small)
    assert set(kept) == set(small.state_dict()) - {POSITIONS}
    assert all(torch.equal(tensor, small.state_dict()[name]) for name, tensor in kept.items())
    with torch.device("meta"):
        predicted = Ligo().keep(DiT(small.config))
    assert {n: (t.shape, t.dtype) for n, t in predicted.items()} == {n: (t.shape, t.dtype) for n, t in kept.items()}


def test_at_the_same_width_without_noise_the_blocks_are_stacked_copies(small):
    model = merge(grown(small, depth=5))
    for layer, block in enumerate(model.blocks):
        assert same(block, small.blocks[layer % 2])
    assert same(model.final_layer, small.final_layer) and torch.equal(model.pos_embed, small.pos_embed)


@pytest.mark.parametrize("form", [QUIET, Ligo()], ids=["quiet", "as-by-default"])
def test_the_sources_own_size_reproduces_its_forward(form, small):
    model = grown(small, form)
    assert torch.equal(output(model), output(small)) and output(model).any()
    assert same(merge(model), small)


def test_a_wider_model_has_the_copies_of_net2net_and_its_own_positions(small):
    model, maps = merge(grown(small, depth=3, width=24)), copies(small.config.size, tiny_config(width=24).size)
    state = small.state_dict()
    for name, tensor in model.state_dict().items():
        source = name.replace("blocks.2.", "blocks.0.")
        expected = DiT(model.config).pos_embed if name == POSITIONS else widen(state[source], source, maps)
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)


def test_depth_coefficients_are_nearly_one_hot_and_sum_to_one():
    weights = stacked_depth(3, 7, noise=0.03, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(7))
    assert weights.argmax(dim=1).tolist() == [0, 1, 2, 0, 1, 2, 0]
    others = weights[weights < 0.5]
    assert len(others) == 14 and others.min() > 0 and others.max() < 0.03 and others.std() > 0.004
    without = stacked_depth(3, 3, noise=0.03, generator=torch.Generator().manual_seed(0))
    assert torch.equal(without, torch.eye(3)), "no layer has a copy"


def test_layers_are_mixtures_of_widened_layers_with_coefficients_of_their_type(small):
    model = shaken(grown(small, Ligo(width_noise=0.05), depth=3, width=24))
    maps, state, dense = model.maps.full(), small.state_dict(), model.dense_state()
    for m, place in BLOCK_MATRICES.items():
        for part in ("weight", "bias"):
            for layer in range(3):
                mixture = sum(model.depth[m][layer, j] * state[f"blocks.{j}.{place}.{part}"] for j in range(2))
                expected = widen(mixture, f"blocks.0.{place}.{part}", maps)
                torch.testing.assert_close(dense[f"blocks.{layer}.{place}.{part}"], expected, rtol=1e-4, atol=1e-6)


def test_a_matrix_is_grown_by_the_maps_of_its_rows_and_columns(small):
    """W' = B W A^T written out for every type: residual R, heads H, hidden J; consumers' maps over the number of copies."""
    model = shaken(grown(small, depth=2, width=32))
    R, H, J = (model.maps.full()[name].detach() for name in ("residual", "heads", "hidden"))
    three, six = torch.block_diag(H, H, H), torch.block_diag(R, R, R, R, R, R)
    sides = {"qkv": (three, R), "o": (R, H), "in": (J, R), "out": (R, J), "adaLN": (six, R)}
    dense, state = model.dense_state(), small.state_dict()
    for m, (rows, columns) in sides.items():
        name = f"{BLOCK_MATRICES[m]}.weight"
        mixture = sum(model.depth[m][1, j] * state[f"blocks.{j}.{name}"] for j in range(2))
        torch.testing.assert_close(dense[f"blocks.1.{name}"], rows @ mixture @ columns.T / 2, rtol=1e-4, atol=1e-5)
    labels = state["y_embedder.embedding_table.weight"] @ R.T
    torch.testing.assert_close(dense["y_embedder.embedding_table.weight"], labels, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("depth", "width"), [(2, 16), (3, 24), (4, 32)])
def test_merged_equals_rebuilt(depth, width, small):
    model = shaken(grown(small, Ligo(width_noise=0.05), depth=depth, width=width))
    dense = merge(model)
    torch.testing.assert_close(output(dense), output(model))
    assert output(dense).any() and dense.config == tiny_config(depth=depth, width=width)
    pointers = [p.data_ptr() for p in dense.parameters()]
    assert len(set(pointers)) == len(pointers)


def test_gradients_reach_coefficients_and_maps_alone(small):
    model = grown(small, Ligo(), depth=3, width=24)
    coefficients = {*(f"depth.{m}" for m in BLOCK_MATRICES), *(f"maps.lower.{s}" for s in ("residual", "heads", "hidden"))}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == coefficients
    x, t, y = torch.randn(4, 1, 8, 8), torch.tensor([3, 50, 400, 900]), torch.tensor([0, 1, 2, 10])
    model(x, t, y).square().mean().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached == coefficients


def test_the_products_are_fp32_in_any_precision(small):
    model = shaken(grown(small, Ligo(), depth=3, width=24))
    exact = model.dense_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rebuilt = model.dense_state()
    assert all(torch.equal(tensor, exact[name]) and tensor.dtype == torch.float32 for name, tensor in rebuilt.items())


def test_nothing_is_shared_with_what_is_kept_and_the_seed_draws_the_noise_alone(small):
    kept, form = inherited(small), Ligo(width_noise=0.1)
    config = tiny_config(depth=3, width=24)
    first, again, other = (form.start(kept, config, seed=seed) for seed in (0, 0, 1))
    assert same(first, again) and not same(first, other)
    assert all(torch.equal(first.small[name], other.small[name]) for name in first.small)
    assert len(first.small) == len(kept.tensors) >= 2 * len(BLOCK_TENSORS)
    pointers = [t.data_ptr() for t in (*first.parameters(), *other.parameters(), *kept.tensors.values())]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (ModelSize(depth=1, width=16, num_heads=2), "it only grows: it makes sizes of at least L2-D16"),
        (ModelSize(depth=4, width=8, num_heads=1), "it only grows: it makes sizes of at least L2-D16"),
        (ModelSize(depth=4, width=32, num_heads=2), "it makes no heads of 16 channels, only of the source's 8"),
        (ModelSize(depth=2, width=16, num_heads=2), None),
        (ModelSize(depth=3, width=40, num_heads=5), None),
    ],
)
def test_sizes_that_cannot_be_made_are_refused_with_what_can(target, said, small):
    form, config = Ligo(), DiTConfig(**{**vars(small.config), "size": target})
    assert form.refusal(small.config.size, target) == said and form.misfit(small.config.size) is None
    if said is None:
        assert form.start(inherited(small), config, seed=0).config == config
    else:
        with pytest.raises(ValueError, match=said):
            form.start(inherited(small), config, seed=0)


@pytest.mark.parametrize("name", ["depth_noise", "width_noise"])
def test_negative_noise_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is -0.1; it must be 0 or more"):
        Ligo(**{name: -0.1})
