"""WAVE: templates and scalers against written-out Kronecker products, the fit to a given model, and what other sizes take."""

import math

import pytest
import torch
from torch.nn.functional import mse_loss

from fine_core.dit import DiT, DiTConfig, ModelSize
from fine_core.initializers.fine.learngene import interpolate_depth
from fine_core.initializers.inherited import Inherited
from fine_core.initializers.matrices import BLOCK_MATRICES, POSITIONS, matrix_shape, outer_tensors
from fine_core.initializers.rebuilt import merge
from fine_core.initializers.tleg import Tleg
from fine_core.initializers.wave import Wave, WaveDiT, assembled, rearranged
from fine_core.initializers.width import dense_axes, prefix_rows, select_rows
from tests.tiny import output, random_dit, randomize, same, tiny_config

FORMS = {
    "default": Wave(),
    "many": Wave(template_ratio=3.0),
    "few": Wave(template_ratio=0.1),
    "small": Wave(template_width=8),
    "random": Wave(template_width=16, scaler_init="random"),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
some_sizes = pytest.mark.parametrize(
    ("form", "width"), [(Wave(), 32), (Wave(template_width=8), 24), (FORMS["random"], 32), (FORMS["random"], 16)]
)


@pytest.fixture
def ancestor() -> DiT:
    return random_dit(depth=3, width=32)


def kept_by(form, ancestor) -> Inherited:
    return Inherited(config=ancestor.config, tensors=form.keep(ancestor))


def started(form, ancestor, *, depth: int = 3, width: int = 32, seed: int = 0) -> WaveDiT:
    return form.start(kept_by(form, ancestor), tiny_config(depth=depth, width=width), seed=seed)


def made_of(form, ancestor, scalers, templates) -> DiT:
    """The model of the ancestor's size for templates and scalers that are given, with its biases of layer 0."""
    tensors = outer_tensors(ancestor.state_dict())
    for m, place in BLOCK_MATRICES.items():
        bias = ancestor.blocks[0].get_submodule(place).bias.detach()
        tensors |= {f"template.{m}": templates[m], f"scaler.{m}": scalers[m], f"bias.{m}": bias}
    return merge(form.start(Inherited(config=ancestor.config, tensors=tensors), ancestor.config, seed=0))


def weights_of(model, matrix: str) -> torch.Tensor:
    return torch.stack([block.get_submodule(BLOCK_MATRICES[matrix]).weight.detach() for block in model.blocks])  # (L, out, in)


def test_templates_take_as_many_bytes_as_fines_factors():
    source = tiny_config(depth=3, width=32).size
    numbers = {m: Wave().number_of_templates(m, source) for m in BLOCK_MATRICES}
    assert numbers == {"qkv": 4, "o": 2, "in": 5, "out": 5, "adaLN": 7} and sum(numbers.values()) == 23
    for width in (8, 16, 32):
        kept = kept_by(Wave(template_width=width), random_dit(depth=3, width=32)).tensors
        templates = {name: tensor for name, tensor in kept.items() if name.startswith("template.")}
        assert all(tensor.shape[1:] == (width, width) for tensor in templates.values())
        assert sum(tensor.numel() for tensor in templates.values()) == 23 * 32 * 32
    assert Wave(template_ratio=1.5).number_of_templates("qkv", source) == 6
    assert Wave(template_ratio=0.01).number_of_templates("qkv", source) == 1


@every_form
def test_every_layer_is_the_sum_of_written_out_kronecker_products(form, ancestor):
    model = started(form, ancestor, depth=4)
    state, held = model.dense_state(), model.tensors()
    for m, place in BLOCK_MATRICES.items():
        for layer in range(4):
            products = [torch.kron(s, t) for s, t in zip(held[f"scaler.{m}"][layer], held[f"template.{m}"], strict=True)]
            weight = state[f"blocks.{layer}.{place}.weight"]
            torch.testing.assert_close(weight, sum(products), rtol=1e-4, atol=1e-5)
            assert weight.shape == matrix_shape(m, 32) and torch.equal(state[f"blocks.{layer}.{place}.bias"], held[f"bias.{m}"])


def test_a_scaler_of_one_number_that_grows_with_the_layer_is_tleg(ancestor):
    """o has scalers (1, 1): W_l = B + (l / L) A. Other matrices need a template for each block of B and of A to be so."""
    tleg = Tleg()
    expected = tleg.start(Inherited(config=ancestor.config, tensors=tleg.keep(ancestor)), ancestor.config, seed=0)
    scalers, templates = {}, {}
    for m, place in BLOCK_MATRICES.items():
        base, slope = tleg.keep(ancestor)[f"template.{place}.weight"]
        rows, columns = matrix_shape(m, 1)
        templates[m] = torch.cat([rearranged(part[None], 32).reshape(-1, 32, 32) for part in (base, slope)])
        one_hot = torch.eye(rows * columns).reshape(-1, rows, columns)
        scalers[m] = torch.stack([torch.cat([one_hot, layer / 3 * one_hot]) for layer in range(3)])
    assert scalers["o"].flatten(1).tolist() == [[1.0, 0.0], [1.0, pytest.approx(1 / 3)], [1.0, pytest.approx(2 / 3)]]
    model = made_of(Wave(), ancestor, scalers, templates)
    for m in BLOCK_MATRICES:
        torch.testing.assert_close(weights_of(model, m), weights_of(expected, m), rtol=1e-5, atol=1e-6)


def test_one_hot_scalers_over_as_many_templates_as_layers_copy_the_layers(ancestor):
    scalers, templates = {}, {}
    for m in BLOCK_MATRICES:
        rows, columns = matrix_shape(m, 1)
        templates[m] = torch.cat([rearranged(w[None], 32).reshape(-1, 32, 32) for w in weights_of(ancestor, m)])
        number = rows * columns
        scalers[m] = torch.eye(3 * number).reshape(3, rows, columns, 3 * number).movedim(-1, 1)
    model = made_of(Wave(), ancestor, scalers, templates)
    assert all(torch.equal(weights_of(model, m), weights_of(ancestor, m)) for m in BLOCK_MATRICES)


def with_shared_biases(model: DiT) -> DiT:
    with torch.no_grad():
        for block in model.blocks:
            for place in BLOCK_MATRICES.values():
                block.get_submodule(place).bias.copy_(model.blocks[0].get_submodule(place).bias)
    return model


def test_with_as_many_templates_as_blocks_the_ancestor_is_reproduced(ancestor):
    source, form = with_shared_biases(ancestor), Wave(template_ratio=3.0)
    assert all(form.number_of_templates(m, source.config.size) >= 3 * max(matrix_shape(m, 1)) for m in ("qkv", "o", "in"))
    model = started(form, source)
    torch.testing.assert_close(output(model), output(source), rtol=1e-4, atol=1e-4)
    assert output(model).any()
    for m in BLOCK_MATRICES:
        torch.testing.assert_close(weights_of(merge(model), m), weights_of(source, m), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [8, 16, 32])
def test_what_has_the_form_already_is_fitted_exactly(width):
    """Rank N over more blocks than N."""
    form, config = Wave(template_width=width, template_ratio=0.5), tiny_config(depth=6, width=32)
    ancestor = merge(randomize(form.constrained(config, seed=0)))
    assert all(len(rearranged(weights_of(ancestor, m), width)) > form.number_of_templates(m, config.size) for m in ("qkv", "o"))
    model = started(form, ancestor, depth=6)
    for m in BLOCK_MATRICES:
        torch.testing.assert_close(weights_of(merge(model), m), weights_of(ancestor, m), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output(model), output(ancestor), rtol=1e-3, atol=1e-3)


def test_fewer_templates_than_the_rank_are_the_best_of_that_number(ancestor):
    kept = kept_by(Wave(), ancestor).tensors
    for m, number in {"qkv": 4, "o": 2, "in": 5, "out": 5, "adaLN": 7}.items():
        weights = weights_of(ancestor, m)
        error = (assembled(kept[f"scaler.{m}"], kept[f"template.{m}"]) - weights).square().sum()
        blocks = torch.stack([part for w in weights for row in w.split(32) for part in row.split(32, dim=1)]).flatten(1)
        dropped = torch.linalg.svdvals(blocks)[number:].square().sum()
        assert dropped > 1
        torch.testing.assert_close(error, dropped, rtol=1e-4, atol=1e-5)


def test_biases_are_means_over_the_layers_and_outer_tensors_the_ancestors(ancestor):
    kept = kept_by(Wave(), ancestor).tensors
    mean = torch.stack([block.mlp.fc1.bias for block in ancestor.blocks]).mean(dim=0)
    torch.testing.assert_close(kept["bias.in"], mean)
    state = started(Wave(), ancestor, depth=5).dense_state()
    assert all(torch.equal(state[name], tensor) for name, tensor in outer_tensors(ancestor.state_dict()).items())
    assert torch.equal(state[POSITIONS], ancestor.pos_embed)


def test_fitted_templates_are_as_large_as_drawn_ones_and_spare_ones_have_no_weight(ancestor):
    kept = kept_by(Wave(template_ratio=3.0), ancestor).tensors
    for m in BLOCK_MATRICES:
        std = math.sqrt(2 / sum(matrix_shape(m, 32)))
        sizes = kept[f"template.{m}"].square().mean(dim=(1, 2)).sqrt()
        torch.testing.assert_close(sizes, torch.full_like(sizes, std), rtol=0.1, atol=0)
    assert kept["scaler.o"].shape == (3, 6, 1, 1) and not kept["scaler.o"][:, 3:].any() and kept["scaler.o"][:, :3].any()


@every_form
def test_what_is_kept_is_known_from_shapes_alone_fitted_or_trained(form, ancestor):
    real = form.keep(ancestor)
    with torch.device("meta"):
        predicted = form.keep(DiT(ancestor.config))
    trained = form.keep_of(form.constrained(ancestor.config, seed=0))
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in real.items()}
    for other in (predicted, trained):
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in other.items()} == shapes
    assert all(tensor.is_contiguous() for tensor in (*real.values(), *trained.values()))


def test_what_is_kept_is_read_from_its_file_again(ancestor, tmp_path):
    inherited = kept_by(Wave(template_width=16), ancestor)
    inherited.save(tmp_path / "kept.safetensors")
    loaded = Inherited.load(tmp_path / "kept.safetensors")
    assert loaded.config == ancestor.config and loaded.tensors.keys() == inherited.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in inherited.tensors.items())


@some_sizes
def test_only_scalers_are_trained_after_the_start_and_nothing_is_shared(form, width, ancestor):
    inherited, config = kept_by(form, ancestor), tiny_config(depth=4, width=width)
    first, second = form.start(inherited, config, seed=0), form.start(inherited, config, seed=0)
    assert {name for name, p in first.named_parameters() if p.requires_grad} == {f"scalers.{m}" for m in BLOCK_MATRICES}
    assert same(first, second)
    pointers = [t.data_ptr() for t in (*first.parameters(), *second.parameters(), *inherited.tensors.values())]
    assert len(set(pointers)) == len(pointers)
    before = {name: p.detach().clone() for name, p in first.named_parameters()}
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    first(torch.randn(4, 1, 8, 8), torch.tensor([3, 50, 400, 900]), torch.tensor([0, 1, 2, 10])).square().mean().backward()
    optimizer.step()
    moved = {name for name, p in first.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {f"scalers.{m}" for m in BLOCK_MATRICES}


def test_the_products_are_fp32_in_any_precision(ancestor):
    model = started(Wave(template_width=8), ancestor)
    exact = model.dense_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rebuilt = model.dense_state()
    assert all(torch.equal(tensor, exact[name]) and tensor.dtype == torch.float32 for name, tensor in rebuilt.items())


def test_linear_scalers_interpolate_the_ancestors_in_normalised_depth(ancestor):
    kept = kept_by(Wave(), ancestor).tensors
    for depth in (1, 2, 3, 5):
        model = started(Wave(), ancestor, depth=depth)
        for m in BLOCK_MATRICES:
            own = kept[f"scaler.{m}"]
            expected = interpolate_depth(own.flatten(1), depth).reshape(depth, *own.shape[1:])
            torch.testing.assert_close(model.scalers[m].detach(), expected, rtol=0, atol=0)
    middle = (weights_of(merge(started(Wave(), ancestor)), "in")[:2]).mean(dim=0)
    torch.testing.assert_close(weights_of(merge(started(Wave(), ancestor, depth=5)), "in")[1], middle, rtol=1e-4, atol=1e-5)


def test_random_scalers_give_matrices_the_energy_of_xaviers_and_close_adaln(ancestor):
    form = Wave(scaler_init="random")
    model = started(form, ancestor, depth=40)
    for m in BLOCK_MATRICES:
        scaler = model.scalers[m].detach()
        if m == "adaLN":
            assert not scaler.any()
            continue
        assert scaler.std().item() == pytest.approx(scaler.shape[1] ** -0.5, rel=0.2)
        assert weights_of(merge(model), m).std().item() == pytest.approx(math.sqrt(2 / sum(matrix_shape(m, 32))), rel=0.2)
    other = started(form, ancestor, depth=40, seed=1)
    assert not torch.equal(other.scalers["o"], model.scalers["o"]) and torch.equal(
        other.tensors()["bias.o"], model.tensors()["bias.o"]
    )


@pytest.mark.parametrize(("template_width", "width"), [(8, 8), (8, 16), (8, 24), (16, 16)])
def test_narrower_models_are_the_first_channels_of_everything_with_larger_matrices(template_width, width, ancestor):
    form = Wave(template_width=template_width)
    whole, narrow = started(form, ancestor).dense_state(), started(form, ancestor, width=width)
    rows, state = prefix_rows(ancestor.config.size, narrow.config.size), narrow.dense_state()
    assert set(state) == set(whole)
    for name, tensor in state.items():
        if name == POSITIONS:
            assert torch.equal(tensor, DiT(narrow.config).pos_embed)
            continue
        scale = math.sqrt(32 / width) if name.startswith("blocks.") and name.endswith("weight") else 1.0
        torch.testing.assert_close(tensor, scale * select_rows(whole[name], dense_axes(name), rows), rtol=1e-4, atol=1e-5)
    assert output(narrow).isfinite().all() and output(narrow).any()
    for name, template in narrow.tensors().items():
        if name.startswith("template."):
            assert torch.equal(template, form.keep(ancestor)[name])


@some_sizes
def test_merged_equals_rebuilt(form, width, ancestor):
    model = randomize(started(form, ancestor, depth=4, width=width))
    dense = merge(model)
    torch.testing.assert_close(output(dense), output(model), rtol=1e-4, atol=1e-5)
    assert output(dense).any() and dense.config == tiny_config(depth=4, width=width)
    pointers = [p.data_ptr() for p in dense.parameters()]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("template_width", [0, 16])
def test_a_constrained_model_starts_as_the_identity_with_xaviers_energy(template_width):
    form, config = Wave(template_width=template_width), tiny_config(depth=12, width=64)
    model = form.constrained(config, seed=3)
    assert all(p.requires_grad for p in model.parameters()) and not output(model).any()
    assert same(model, form.constrained(config, seed=3)) and not same(model, form.constrained(config, seed=4))
    for m in BLOCK_MATRICES:
        std = math.sqrt(2 / sum(matrix_shape(m, 64)))
        assert model.tensors()[f"template.{m}"].std().item() == pytest.approx(std, rel=0.05)
        found = weights_of(merge(model), m).std().item()
        assert found == (0 if m == "adaLN" else pytest.approx(std, rel=0.3))


def test_a_constrained_model_trains_scalers_and_templates_and_is_kept_as_it_is(ancestor):
    form = Wave()
    model = form.constrained(ancestor.config, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    x, t, y = torch.randn(8, 1, 8, 8, generator=generator), torch.arange(0, 800, 100), torch.arange(8)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = mse_loss(model(x, t, y)[:, :1], x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    inherited = Inherited(config=model.config, tensors=form.keep_of(model))
    again = form.start(inherited, model.config, seed=0)
    assert torch.equal(output(again), output(model))
    first = inherited.tensors["template.o"].clone()
    with torch.no_grad():
        model.tensors()["template.o"].zero_()
    assert torch.equal(inherited.tensors["template.o"], first), "kept tensors are copies"


def size(width: int, num_heads: int | None = None) -> ModelSize:
    return ModelSize(depth=2, width=width, num_heads=num_heads or width // 8)


@pytest.mark.parametrize(
    ("template_width", "target", "said"),
    [
        (0, size(40), "it makes no width above the source's 32"),
        (0, size(16), "it makes no width but multiples of its templates', 32"),
        (16, size(24), "it makes no width but multiples of its templates', 16"),
        (16, size(16, num_heads=1), "it makes no heads of 16 channels, only of the source's 8"),
        (0, size(32), None),
        (16, size(16), None),
        (8, size(24), None),
    ],
)
def test_sizes_that_cannot_be_made_are_refused_with_what_can(template_width, target, said, ancestor):
    form, config = Wave(template_width=template_width), DiTConfig(**{**vars(ancestor.config), "size": target})
    assert form.refusal(ancestor.config.size, target) == said
    if said is None:
        assert form.start(kept_by(form, ancestor), config, seed=0).config == config
    else:
        with pytest.raises(ValueError, match=said):
            form.start(kept_by(form, ancestor), config, seed=0)


@pytest.mark.parametrize("template_width", [4, 12, 24, 64])
def test_template_widths_that_do_not_fit_the_source_are_named(template_width, ancestor):
    said = f"template_width is {template_width}; it must be a multiple of the head size 8 that divides the width 32"
    assert Wave(template_width=template_width).misfit(ancestor.config.size) == said
    assert all(Wave(template_width=fits).misfit(ancestor.config.size) is None for fits in (0, 8, 16, 32))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"template_ratio": 0.0}, "template_ratio is 0.0; it must be positive and finite"),
        ({"template_ratio": math.inf}, "template_ratio is inf; it must be positive and finite"),
        ({"template_width": -8}, "template_width is -8; it must be 0 or more"),
        ({"scaler_init": "zero"}, "unknown scaler_init 'zero'; choose one of linear, random"),
    ],
)
def test_options_that_fit_no_source_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Wave(**options)
