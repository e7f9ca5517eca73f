"""Low frequencies of an ancestor's weights: the transform against scipy, and what other depths and widths get of it."""

import math

import numpy as np
import pytest
import scipy.fft
import torch

from fine_core.dit import DiT, DiTConfig, ModelSize
from fine_core.initializers.frequency import FREQUENCIES, Frequency, dct_matrix, number_kept
from fine_core.initializers.inherited import Inherited
from fine_core.initializers.matrices import BLOCK_TENSORS, outer_tensors
from tests.tiny import output, random_dit, same, tiny_config

PARTS = ("weight", "bias")
CHUNKS = {"attn.qkv": 3, "adaLN_modulation.1": 6, "final_layer.adaLN_modulation.1": 2}


@pytest.fixture
def ancestor() -> DiT:
    return random_dit(depth=4, width=32)


def started(form, ancestor, *, depth: int = 4, width: int = 32, seed: int = 0) -> DiT:
    inherited = Inherited(config=ancestor.config, tensors=form.keep(ancestor))
    return form.start(inherited, tiny_config(depth=depth, width=width), seed=seed)


def layers(model, name: str) -> torch.Tensor:
    return torch.stack([block.state_dict()[name] for block in model.blocks])  # (L, ...)


def chunks_of(name: str) -> int:
    return CHUNKS.get(name.rsplit(".", 1)[0], 1)


@pytest.mark.parametrize("n", [1, 2, 7, 32])
def test_the_matrix_is_the_orthonormal_transform(n):
    matrix = dct_matrix(n).numpy()
    np.testing.assert_allclose(matrix, scipy.fft.dct(np.eye(n), norm="ortho", axis=0), atol=1e-12)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(n), atol=1e-12)


def test_all_frequencies_at_the_sources_own_size_reproduce_its_forward(ancestor):
    model = started(Frequency(kept_share=1.0), ancestor)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, ancestor.state_dict()[name], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output(model), output(ancestor), rtol=1e-4, atol=1e-4)
    assert output(model).any()


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("name", BLOCK_TENSORS)
def test_kept_coefficients_are_the_lowest_of_scipys_in_every_chunk(name, share, ancestor):
    kept = Frequency(kept_share=share).keep(ancestor)[FREQUENCIES + name]
    chunks = chunks_of(name)
    for own, stack in zip(kept.chunk(chunks, dim=1), layers(ancestor, name).chunk(chunks, dim=1), strict=True):
        expected = scipy.fft.dctn(stack.double().numpy(), norm="ortho")
        low = tuple(slice(number_kept(share, n)) for n in expected.shape)
        assert own.shape == expected[low].shape and own.dtype == torch.float32
        np.testing.assert_allclose(own.numpy(), expected[low], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", [0.5, 0.25])
@pytest.mark.parametrize("name", BLOCK_TENSORS)
def test_other_sizes_are_scipys_inverse_of_cut_or_padded_coefficients(name, share, ancestor):
    depth, width = 6, 24
    model, chunks = started(Frequency(kept_share=share), ancestor, depth=depth, width=width), chunks_of(name)
    for own, stack in zip(layers(model, name).chunk(chunks, 1), layers(ancestor, name).chunk(chunks, 1), strict=True):
        coefficients = scipy.fft.dctn(stack.double().numpy(), norm="ortho")
        padded = np.zeros(own.shape)
        low = tuple(slice(min(number_kept(share, n), m)) for n, m in zip(stack.shape, own.shape, strict=True))
        padded[low] = coefficients[low]
        scale = math.sqrt(own.numel() / stack.numel())
        np.testing.assert_allclose(own.numpy(), scipy.fft.idctn(padded, norm="ortho") * scale, rtol=1e-4, atol=1e-5)


def constants(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Tensors of one value in each chunk of rows."""
    tensors = {}
    for name, shape in shapes.items():
        chunks = chunks_of(name.split(".", 2)[2] if name.startswith("blocks.") else name)
        values = (0.1 * torch.arange(1, chunks + 1)).repeat_interleave(shape[0] // chunks)
        tensors[name] = values.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    return tensors


@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
@pytest.mark.parametrize(("depth", "width"), [(1, 8), (3, 24), (4, 32), (9, 48)])
def test_constant_tensors_stay_constant_at_every_size(depth, width, share, ancestor):
    ancestor.load_state_dict(constants({name: tensor.shape for name, tensor in ancestor.state_dict().items()}))
    state = started(Frequency(kept_share=share), ancestor, depth=depth, width=width).state_dict()
    del state["pos_embed"]
    for name, expected in constants({name: tensor.shape for name, tensor in state.items()}).items():
        torch.testing.assert_close(state[name], expected, rtol=1e-5, atol=1e-6, msg=name)


def source_with(ancestor, name: str, tensor: torch.Tensor) -> DiT:
    with torch.no_grad():
        for block, layer in zip(ancestor.blocks, tensor, strict=True):
            block.get_parameter(name).copy_(layer)
    return ancestor


def wave(n: int, half_periods: int) -> torch.Tensor:
    return torch.cos(math.pi * half_periods * (torch.arange(n) + 0.5) / n)


@pytest.mark.parametrize(("depth", "width"), [(3, 16), (8, 48)])
def test_a_slow_wave_over_depth_outputs_and_inputs_stays_that_wave(depth, width, ancestor):
    def waves(layers, n):
        return wave(layers, 1)[:, None, None] * wave(4 * n, 2)[:, None] * wave(n, 3)

    source = source_with(ancestor, "mlp.fc1.weight", waves(4, 32))
    model = started(Frequency(kept_share=0.5), source, depth=depth, width=width)
    torch.testing.assert_close(layers(model, "mlp.fc1.weight"), waves(depth, width), rtol=1e-4, atol=1e-5)


def test_waves_above_the_kept_share_vanish(ancestor):
    source = source_with(ancestor, "attn.proj.weight", wave(4, 0)[:, None, None] * wave(32, 20)[:, None] * wave(32, 0))
    model = started(Frequency(kept_share=0.5), source)
    torch.testing.assert_close(layers(model, "attn.proj.weight"), torch.zeros(4, 32, 32), rtol=0, atol=1e-5)


@pytest.mark.parametrize("depth", [3, 12, 24])
def test_weights_that_are_linear_in_depth_stay_nearly_so_at_other_depths(depth):
    ancestor = random_dit(depth=12, width=16)
    base, slope = torch.randn(64, 16), torch.randn(64, 16)
    position = (torch.arange(12) + 0.5)[:, None, None] / 12
    source = source_with(ancestor, "mlp.fc1.weight", base + position * slope)
    own = layers(started(Frequency(kept_share=1.0), source, depth=depth, width=16), "mlp.fc1.weight")
    expected = base + ((torch.arange(depth) + 0.5)[:, None, None] / depth) * slope
    assert ((own - expected).abs() <= 0.02 * slope.abs() + 1e-4).all(), "the corners of the line are rounded"
    assert ((own.diff(dim=0) * slope.sign()) >= -1e-4).all(), "it rises where the source's rises"


def test_more_layers_of_few_frequencies_are_smooth_over_depth(ancestor):
    model = started(Frequency(kept_share=0.5), ancestor, depth=16)
    for name in BLOCK_TENSORS:
        stack = layers(model, name).double().numpy()
        over_depth = scipy.fft.dct(stack, norm="ortho", axis=0)
        np.testing.assert_allclose(over_depth[2:], 0, atol=1e-5)  # half of 4
        assert np.abs(over_depth[1]).max() > 1e-2


def test_the_share_is_rounded_and_never_nothing():
    assert [number_kept(share, 12) for share in (1.0, 0.5, 0.3, 0.01)] == [12, 6, 4, 1]


def test_kept_bytes_of_the_blocks_shrink_with_the_cube_of_the_share():
    ancestor = random_dit(depth=8, width=32)

    def sizes(share):
        kept = Frequency(kept_share=share).keep(ancestor)
        return {
            part: sum(t.numel() for n, t in kept.items() if n.startswith(FREQUENCIES) and n.endswith(part)) for part in PARTS
        }

    whole, half, quarter = sizes(1.0), sizes(0.5), sizes(0.25)
    assert whole["weight"] == sum(layers(ancestor, n).numel() for n in BLOCK_TENSORS if n.endswith("weight"))
    assert whole["weight"] == 2**3 * half["weight"] == 4**3 * quarter["weight"]
    assert whole["bias"] == 2**2 * half["bias"] == 4**2 * quarter["bias"]


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_what_is_kept_is_known_from_shapes_alone_and_survives_its_file(share, ancestor, tmp_path):
    form = Frequency(kept_share=share)
    kept = form.keep(ancestor)
    with torch.device("meta"):
        predicted = form.keep(DiT(ancestor.config))
    assert {n: (t.shape, t.dtype) for n, t in predicted.items()} == {n: (t.shape, t.dtype) for n, t in kept.items()}
    assert all(tensor.is_meta for tensor in predicted.values())
    Inherited(config=ancestor.config, tensors=kept).save(tmp_path / "kept.safetensors")
    loaded = Inherited.load(tmp_path / "kept.safetensors").tensors
    assert all(torch.equal(loaded[name], tensor) for name, tensor in kept.items())


def test_outer_tensors_are_copied_at_the_sources_width_and_resampled_at_others(ancestor):
    same_width = started(Frequency(kept_share=0.25), ancestor, depth=2).state_dict()
    old = outer_tensors(ancestor.state_dict())
    assert all(torch.equal(same_width[name], tensor) for name, tensor in old.items())
    narrow = started(Frequency(kept_share=0.25), ancestor, width=16).state_dict()
    coefficients = scipy.fft.dct(old["y_embedder.embedding_table.weight"].double().numpy(), norm="ortho", axis=1)
    expected = scipy.fft.idct(coefficients[:, :16], norm="ortho", axis=1) / math.sqrt(2)
    np.testing.assert_allclose(narrow["y_embedder.embedding_table.weight"].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(narrow["final_layer.linear.bias"], old["final_layer.linear.bias"])


@pytest.mark.parametrize(("depth", "width"), [(1, 8), (2, 16), (7, 48)])
def test_any_depth_and_width_starts_with_positions_and_storage_of_its_own(depth, width, ancestor):
    form, config = Frequency(), tiny_config(depth=depth, width=width)
    inherited = Inherited(config=ancestor.config, tensors=form.keep(ancestor))
    model = form.start(inherited, config, seed=0)
    assert model.config == config and torch.equal(model.pos_embed, DiT(config).pos_embed)
    assert output(model).isfinite().all() and output(model).any()
    pointers = [p.data_ptr() for p in (*model.parameters(), *inherited.tensors.values())]
    assert len(set(pointers)) == len(pointers)
    assert same(model, form.start(inherited, config, seed=1)), "nothing is drawn"


def test_heads_of_another_size_are_refused_and_every_other_size_is_made(ancestor):
    source, form = ancestor.config.size, Frequency()
    for depth, width in ((1, 8), (4, 32), (50, 64)):
        assert form.refusal(source, ModelSize(depth=depth, width=width, num_heads=width // 8)) is None
    target, said = ModelSize(depth=4, width=32, num_heads=2), "it makes no heads of 16 channels, only of the source's 8"
    assert form.refusal(source, target) == said
    with pytest.raises(ValueError, match=said):
        inherited = Inherited(config=ancestor.config, tensors=form.keep(ancestor))
        form.start(inherited, DiTConfig(**{**vars(ancestor.config), "size": target}), seed=0)


@pytest.mark.parametrize("share", [0, -0.5, 1.01])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=f"kept_share is {share}; it must be above 0 and at most 1"):
        Frequency(kept_share=share)
