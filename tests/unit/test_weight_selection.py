"""Weight selection: which elements, heads and blocks of an ancestor a smaller model takes."""

import pytest
import torch

from fine_core.dit import DiT, DiTConfig, ModelSize
from fine_core.initializers.inherited import Inherited
from fine_core.initializers.weight_selection import WeightSelection, evenly_spaced
from tests.tiny import output, random_dit, same, tiny_config

SELECTIONS = ("official", "heads")
HEAD = 8


@pytest.fixture
def ancestor() -> DiT:
    return random_dit(depth=4, width=32)


def started(form, ancestor, *, depth: int = 4, width: int = 32, seed: int = 0) -> DiT:
    inherited = Inherited(config=ancestor.config, tensors=form.keep(ancestor))
    return form.start(inherited, tiny_config(depth=depth, width=width), seed=seed)


def size(depth: int, width: int, num_heads: int | None = None) -> ModelSize:
    return ModelSize(depth=depth, width=width, num_heads=num_heads or width // HEAD)


@pytest.mark.parametrize(
    ("total", "number", "expected"),
    [
        (12, 4, [0, 3, 6, 9]),  # divisible: the last element is left out
        (12, 5, [0, 3, 6, 8, 11]),  # 2.75, 5.5 (to the even 6), 8.25
        (32, 24, [round(i * 31 / 23) for i in range(24)]),
        (7, 7, [0, 1, 2, 3, 4, 5, 6]),
        (9, 1, [0]),
    ],
)
def test_indices_are_evenly_spaced_as_published(total, number, expected):
    assert evenly_spaced(total, number).tolist() == expected


def test_indices_rise_and_stay_within():
    for total in (13, 96, 768, 1152, 6912):
        for number in {1, 2, total // 3, total // 2 + 1, total - 1, total}:
            index = evenly_spaced(total, number)
            assert len(index) == number and index[0] == 0 and index[-1] < total and (index.diff() > 0).all()


def test_everything_but_the_positions_is_kept_and_known_from_shapes_alone(ancestor):
    kept = WeightSelection().keep(ancestor)
    assert set(kept) == set(ancestor.state_dict()) - {"pos_embed"}
    with torch.device("meta"):
        predicted = WeightSelection().keep(DiT(ancestor.config))
    assert {n: t.shape for n, t in predicted.items()} == {n: t.shape for n, t in kept.items()}


@pytest.mark.parametrize("blocks", ["first", "uniform"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_the_sources_own_size_reproduces_its_forward(selection, blocks, ancestor):
    model = started(WeightSelection(selection=selection, blocks=blocks), ancestor)
    assert same(model, ancestor) and torch.equal(output(model), output(ancestor)) and output(model).any()


@pytest.mark.parametrize("selection", SELECTIONS)
def test_fewer_blocks_at_the_same_width_are_the_truncated_source(selection, ancestor):
    model = started(WeightSelection(selection=selection), ancestor, depth=2)
    del ancestor.blocks[2:]
    assert same(model, ancestor) and torch.equal(output(model), output(ancestor))


def test_uniform_blocks_are_evenly_spaced():
    ancestor = random_dit(depth=6, width=16)
    for depth, layers in ((3, [0, 2, 4]), (4, [0, 2, 3, 5])):
        model = started(WeightSelection(blocks="uniform"), ancestor, depth=depth, width=16)
        for block, layer in zip(model.blocks, layers, strict=True):
            assert same(block, ancestor.blocks[layer])


@pytest.mark.parametrize("width", [8, 16, 24])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_narrower_models_have_fixed_positions_finite_outputs_and_storage_of_their_own(selection, width, ancestor):
    form = WeightSelection(selection=selection)
    inherited = Inherited(config=ancestor.config, tensors=form.keep(ancestor))
    config = tiny_config(depth=3, width=width)
    model = form.start(inherited, config, seed=0)
    assert model.config == config and torch.equal(model.pos_embed, DiT(config).pos_embed)
    assert output(model).isfinite().all() and output(model).any()
    pointers = [p.data_ptr() for p in (*model.parameters(), *ancestor.parameters())]
    assert len(set(pointers)) == len(pointers)
    assert same(model, form.start(inherited, config, seed=1)), "nothing is drawn"


def test_whole_heads_are_taken_within_each_of_q_k_and_v(ancestor):
    model = started(WeightSelection(selection="heads"), ancestor, width=16)
    residual, heads = list(range(0, 32, 2)), (0, 2)  # 2 of 4 heads
    for own, old in zip(model.blocks, ancestor.blocks, strict=True):
        q_k_v = old.attn.qkv.weight.reshape(3, 4, HEAD, 32), old.attn.qkv.bias.reshape(3, 4, HEAD)
        assert torch.equal(own.attn.qkv.weight.reshape(3, 2, HEAD, 16), q_k_v[0][:, heads][..., residual])
        assert torch.equal(own.attn.qkv.bias.reshape(3, 2, HEAD), q_k_v[1][:, heads])
        inputs = old.attn.proj.weight.reshape(32, 4, HEAD)[residual][:, heads]
        assert torch.equal(own.attn.proj.weight.reshape(16, 2, HEAD), inputs)


# Index sets of each dimension, one letter a chunk: r residual channels, h channels of heads, f hidden units, . all.
OF_BLOCKS = {
    "attn.qkv.weight": ("hhh", "r"),
    "attn.qkv.bias": ("hhh",),
    "attn.proj.weight": ("r", "h"),
    "attn.proj.bias": ("r",),
    "mlp.fc1.weight": ("f", "r"),
    "mlp.fc1.bias": ("f",),
    "mlp.fc2.weight": ("r", "f"),
    "mlp.fc2.bias": ("r",),
    "adaLN_modulation.1.weight": ("rrrrrr", "r"),
    "adaLN_modulation.1.bias": ("rrrrrr",),
}
OUTER = {
    "x_embedder.proj.weight": ("r", ".", ".", "."),
    "x_embedder.proj.bias": ("r",),
    "t_embedder.mlp.0.weight": ("r", "."),
    "t_embedder.mlp.0.bias": ("r",),
    "t_embedder.mlp.2.weight": ("r", "r"),
    "t_embedder.mlp.2.bias": ("r",),
    "y_embedder.embedding_table.weight": (".", "r"),
    "final_layer.linear.weight": (".", "r"),
    "final_layer.linear.bias": (".",),
    "final_layer.adaLN_modulation.1.weight": ("rr", "r"),
    "final_layer.adaLN_modulation.1.bias": ("rr",),
}


def test_heads_selection_takes_the_same_channels_everywhere(ancestor):
    chosen = {
        "r": [round(i * 31 / 23) for i in range(24)],
        "h": [head * HEAD + i for head in (0, 2, 3) for i in range(HEAD)],  # 0, 1.5 and 3, to whole heads
        "f": [round(i * 127 / 95) for i in range(96)],
    }
    sets = OUTER | {f"blocks.{layer}.{name}": of for layer in range(4) for name, of in OF_BLOCKS.items()}
    new = started(WeightSelection(selection="heads"), ancestor, width=24).state_dict()
    assert set(sets) == set(new) - {"pos_embed"}
    for name, of_dimensions in sets.items():
        expected = ancestor.state_dict()[name]
        for dim, letters in enumerate(of_dimensions):
            if letters != ".":
                parts = expected.chunk(len(letters), dim)
                expected = torch.cat([p.movedim(dim, 0)[chosen[letters[0]]].movedim(0, dim) for p in parts], dim)
        assert torch.equal(new[name], expected), name


def test_official_selection_takes_every_dimension_by_itself(ancestor):
    model, old = started(WeightSelection(), ancestor, width=16), ancestor.state_dict()
    new = model.state_dict()
    assert torch.equal(new["blocks.1.attn.qkv.weight"], old["blocks.1.attn.qkv.weight"][::2, ::2]), "through the heads"
    assert torch.equal(new["blocks.1.mlp.fc2.weight"], old["blocks.1.mlp.fc2.weight"][::2, ::2])
    narrow = started(WeightSelection(), ancestor, width=24).state_dict()
    rows = [round(i * 191 / 143) for i in range(144)]  # six chunks as one dimension
    columns = [round(i * 31 / 23) for i in range(24)]
    name = "blocks.1.adaLN_modulation.1.weight"
    assert torch.equal(narrow[name], old[name][rows][:, columns])


def test_dimensions_that_do_not_depend_on_the_width_stay_whole(ancestor):
    old = ancestor.state_dict()
    for selection in SELECTIONS:
        new = started(WeightSelection(selection=selection), ancestor, width=16).state_dict()
        assert torch.equal(new["x_embedder.proj.weight"], old["x_embedder.proj.weight"][::2])
        assert torch.equal(new["t_embedder.mlp.0.weight"], old["t_embedder.mlp.0.weight"][::2])
        assert torch.equal(new["y_embedder.embedding_table.weight"], old["y_embedder.embedding_table.weight"][:, ::2])
        assert torch.equal(new["final_layer.linear.weight"], old["final_layer.linear.weight"][:, ::2])
        assert torch.equal(new["final_layer.linear.bias"], old["final_layer.linear.bias"])


def differing(ancestor, width: int) -> set[str]:
    official, heads = (started(WeightSelection(selection=s), ancestor, width=width).state_dict() for s in SELECTIONS)
    return {name for name, tensor in official.items() if not torch.equal(tensor, heads[name])}


def test_the_selections_differ_where_a_dimension_has_heads_or_chunks_that_are_no_multiple(ancestor):
    of_heads = {"attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight"}
    assert differing(ancestor, 32) == set()
    assert differing(ancestor, 16) == {f"blocks.{layer}.{name}" for layer in range(4) for name in of_heads}
    chunked = of_heads | {"adaLN_modulation.1.weight", "adaLN_modulation.1.bias"}
    outer = {"final_layer.adaLN_modulation.1.weight", "final_layer.adaLN_modulation.1.bias"}
    assert differing(ancestor, 24) == outer | {f"blocks.{layer}.{name}" for layer in range(4) for name in chunked}


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (size(5, 32), "it makes no more layers than the source's 4"),
        (size(4, 40), "it makes no width above the source's 32"),
        (size(4, 32, num_heads=2), "it makes no heads of 16 channels, only of the source's 8"),
        (size(1, 8), None),
        (size(4, 32), None),
    ],
)
@pytest.mark.parametrize("blocks", ["first", "uniform"])
def test_sizes_that_cannot_be_made_are_refused_with_what_can(target, said, blocks, ancestor):
    form = WeightSelection(blocks=blocks)
    assert form.refusal(ancestor.config.size, target) == said
    inherited = Inherited(config=ancestor.config, tensors=form.keep(ancestor))
    config = DiTConfig(**{**vars(ancestor.config), "size": target})
    if said is None:
        assert form.start(inherited, config, seed=0).config == config
    else:
        with pytest.raises(ValueError, match=said):
            form.start(inherited, config, seed=0)


def test_unknown_options_are_named_with_the_choices():
    with pytest.raises(ValueError, match="unknown selection 'random'; choose one of official, heads"):
        WeightSelection(selection="random")
    with pytest.raises(ValueError, match="unknown choice of blocks 'last'; choose one of first, uniform"):
        WeightSelection(blocks="last")
