"""Widening: which channels the maps copy, which tensors consume them, and that whole multiples of a width keep the function."""

import pytest
import torch
from torch.func import functional_call

from fine_core.dit import DiT, ModelSize
from fine_core.initializers.fine.factorized import FactorizedDiT
from fine_core.initializers.matrices import BLOCK_MATRICES, POSITIONS
from fine_core.initializers.widening import WidthMaps, check_wider, copies, is_input, widen, width_axes
from fine_core.initializers.width import WIDTH_AXES
from tests.tiny import output, random_dit, randomize, tiny_config

HEAD = 8


def size(width: int, depth: int = 2, num_heads: int | None = None) -> ModelSize:
    return ModelSize(depth=depth, width=width, num_heads=num_heads or width // HEAD)


@pytest.fixture
def source() -> DiT:
    return random_dit(depth=2, width=16)


def widened(model, width: int, maps) -> dict[str, torch.Tensor]:
    state = {name: widen(tensor, name, maps) for name, tensor in model.state_dict().items() if name != POSITIONS}
    return state | {POSITIONS: model.pos_embed.repeat(1, 1, width // model.config.size.width)}


def wide_output(state, width: int):
    wide = DiT(tiny_config(depth=2, width=width))
    wide.load_state_dict(state)
    return output(wide)


def test_rows_of_a_map_copy_channels_in_turn_and_heads_as_wholes():
    maps = copies(size(16), size(40))
    assert {name: tuple(m.shape) for name, m in maps.items()} == {"residual": (40, 16), "heads": (40, 16), "hidden": (160, 64)}
    for matrix in maps.values():
        assert torch.equal(matrix.sum(dim=1), torch.ones(len(matrix))), "one source channel for each"
        assert matrix.argmax(dim=1).tolist() == [i % matrix.shape[1] for i in range(len(matrix))]
    heads = maps["heads"].argmax(dim=1).reshape(5, HEAD)
    assert (heads // HEAD).tolist() == [[head % 2] * HEAD for head in range(5)]
    assert (heads % HEAD).tolist() == [list(range(HEAD))] * 5


@pytest.mark.parametrize("width", [32, 48])
def test_a_whole_multiple_of_the_width_computes_the_same_function(width, source):
    found = wide_output(widened(source, width, copies(size(16), size(width))), width)
    torch.testing.assert_close(found, output(source), rtol=1e-4, atol=1e-5)
    assert found.std() > 0.05


def test_every_tensor_is_widened_to_the_shape_of_a_wider_dit_also_where_copies_are_of_unequal_number(source):
    wide = DiT(tiny_config(depth=2, width=24)).state_dict()
    maps = copies(size(16), size(24))
    found = {name: widen(tensor, name, maps).shape for name, tensor in source.state_dict().items() if name != POSITIONS}
    assert found == {name: tensor.shape for name, tensor in wide.items() if name != POSITIONS}


def test_consumers_divide_a_channel_by_the_number_of_its_copies(source):
    weight = source.blocks[0].mlp.fc1.weight  # (64, 16), to (96, 24): channels 0 to 7 and units 0 to 31 have two copies
    wide = widen(weight, "blocks.0.mlp.fc1.weight", copies(size(16), size(24)))
    halved = torch.cat([weight[:, :8] / 2, weight[:, 8:], weight[:, :8] / 2], dim=1)
    assert torch.equal(wide, torch.cat([halved, halved[:32]]))
    head = widen(source.blocks[0].attn.qkv.bias, "blocks.0.attn.qkv.bias", copies(size(16), size(24)))
    q_k_v = source.blocks[0].attn.qkv.bias.reshape(3, 2, HEAD)
    assert torch.equal(head.reshape(3, 3, HEAD), q_k_v[:, [0, 1, 0]]), "within each of q, k and v"


def test_the_inputs_are_these():
    of_dense = {
        *(f"blocks.1.{place}.weight" for place in BLOCK_MATRICES.values()),
        "t_embedder.mlp.2.weight",
        "final_layer.linear.weight",
        "final_layer.adaLN_modulation.1.weight",
    }
    names = [name for name in DiT(tiny_config()).state_dict() if name != POSITIONS and not name.startswith("blocks.0.")]
    assert {(n, dim) for n in names for dim, *_ in width_axes(n) if is_input(n, dim)} == {(n, 1) for n in of_dense}
    of_fine = {(f"right.{m}", 0) for m in BLOCK_MATRICES}
    of_fine |= {(f"outer.{name}", 1) for name in of_dense if not name.startswith("blocks.")}
    assert {(n, dim) for n in WIDTH_AXES for dim, *_ in width_axes(n) if is_input(n, dim)} == of_fine


@pytest.mark.parametrize("width", [24, 32])
def test_factors_of_fine_are_widened_as_the_matrices_that_they_amount_to(width):
    small = randomize(FactorizedDiT(tiny_config(depth=2, width=16), rank=5))
    wide = FactorizedDiT(tiny_config(depth=2, width=width), rank=5)
    maps = copies(size(16), size(width))
    with torch.no_grad():
        for name, tensor in small.shared_tensors().items():
            wide.shared_tensors()[name].copy_(widen(tensor, name, maps))
        for m in BLOCK_MATRICES:
            wide.sigma[str(width)][m].copy_(small.sigma["16"][m])
    for name, tensor in wide.dense_state().items():
        if name != POSITIONS:
            torch.testing.assert_close(tensor, widen(small.dense_state()[name], name, maps), rtol=1e-4, atol=1e-6)


def test_sets_without_a_map_stay_as_they_are(source):
    weight, maps = source.blocks[0].attn.proj.weight, copies(size(16), size(32))
    only_heads = widen(weight, "blocks.0.attn.proj.weight", {"heads": maps["heads"]})
    assert torch.equal(only_heads, torch.cat([weight, weight], dim=1) / 2)


def maps_to(width: int, noise: float = 0.0, seed: int = 0) -> WidthMaps:
    return WidthMaps(size(16), size(width), noise=noise, generator=torch.Generator().manual_seed(seed))


def test_trainable_maps_start_as_copies_with_noise_on_the_rows_that_are_added():
    fixed, quiet, noisy = copies(size(16), size(40)), maps_to(40).full(), maps_to(40, noise=0.1).full()
    assert all(torch.equal(quiet[name], fixed[name]) for name in fixed)
    for name, matrix in noisy.items():
        n = matrix.shape[1]
        assert torch.equal(matrix[:n], torch.eye(n))
        assert (matrix - fixed[name])[n:].std().item() == pytest.approx(0.1, rel=0.15)
    again, other = maps_to(40, noise=0.1).full(), maps_to(40, noise=0.1, seed=1).full()
    assert all(torch.equal(noisy[n], again[n]) and not torch.equal(noisy[n], other[n]) for n in noisy)


def test_training_the_maps_moves_the_added_rows_alone(source):
    maps, wide = maps_to(32), DiT(tiny_config(depth=2, width=32))
    assert {name: tuple(p.shape) for name, p in maps.named_parameters()} == {
        "lower.residual": (16, 16),
        "lower.heads": (16, 16),
        "lower.hidden": (64, 64),
    }
    optimizer = torch.optim.SGD(maps.parameters(), lr=0.1)
    before = maps.full()
    x, t, y = torch.randn(4, 1, 8, 8), torch.tensor([3, 50, 400, 900]), torch.tensor([0, 1, 2, 10])
    functional_call(wide, widened(source, 32, maps.full()), (x, t, y)).square().mean().backward()
    assert all(p.grad.abs().max() > 0 for p in maps.parameters())
    optimizer.step()
    for name, matrix in maps.full().items():
        n = matrix.shape[1]
        assert torch.equal(matrix[:n], torch.eye(n)) and not torch.equal(matrix[n:], before[name][n:])


def test_at_the_same_width_there_is_nothing_to_train():
    maps = maps_to(16, noise=0.1)
    assert list(maps.parameters()) == [] and maps.full() == {}


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (size(8), "width 8 is narrower than the source's 16; it must be at least that"),
        (size(32, num_heads=2), "it makes no heads of 16 channels, only of the source's 8"),
    ],
)
def test_narrower_targets_and_other_heads_are_refused(target, said):
    for make in (check_wider, copies):
        with pytest.raises(ValueError, match=said):
            make(size(16), target)
