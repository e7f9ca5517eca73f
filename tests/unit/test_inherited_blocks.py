"""What is kept of an ancestor's blocks, and what sizes start from: kept blocks, shared ones, linear ones, factors per layer."""

import pytest
import torch

from fine_core.dit import DiT, DiTConfig, ModelSize
from fine_core.initializers.depth_basis import MixedDiT
from fine_core.initializers.inherited import Inherited
from fine_core.initializers.kept_blocks import KeptBlocks
from fine_core.initializers.matrices import BLOCK_TENSORS
from fine_core.initializers.per_layer_svd import (
    PerLayerFactorizedDiT,
    PerLayerSvd,
    nearest_layers,
    rank_matched_to_shared_factors,
)
from fine_core.initializers.rebuilt import merge
from fine_core.initializers.share import Share, stage_of_layers
from fine_core.initializers.tleg import Tleg
from tests.tiny import random_dit, same

FORMS = {
    "heur": KeptBlocks(blocks=2, top=True),
    "auto": KeptBlocks(blocks=3, top=False),
    "share": Share(stages=1),
    "stages": Share(stages=3),
    "tleg": Tleg(),
    "svd": PerLayerSvd(),
    "svd-rank-4": PerLayerSvd(rank=4),
}


def of_depth(config: DiTConfig, depth: int) -> DiTConfig:
    size = config.size
    return DiTConfig(**{**vars(config), "size": ModelSize(depth=depth, width=size.width, num_heads=size.num_heads)})


def started(form, ancestor, depth: int, seed: int = 0) -> DiT:
    inherited = Inherited(config=ancestor.config, tensors=form.keep(ancestor))
    model = form.start(inherited, of_depth(ancestor.config, depth), seed=seed)
    return model if isinstance(model, DiT) else merge(model)


def block(model, index):
    return model.blocks[index].state_dict()


def equal(first, second) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def ancestor():
    return random_dit(depth=6)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_outer_tensors_are_the_ancestors_and_nothing_is_shared(form, ancestor, tmp_path):
    inherited = Inherited(config=ancestor.config, tensors=form.keep(ancestor))
    inherited.save(tmp_path / "kept.safetensors")
    loaded = Inherited.load(tmp_path / "kept.safetensors")
    assert loaded.config == ancestor.config and all(torch.equal(loaded.tensors[n], t) for n, t in inherited.tensors.items())
    model = started(form, ancestor, depth=4)
    for name in ("x_embedder.proj.weight", "y_embedder.embedding_table.weight", "final_layer.linear.weight"):
        assert torch.equal(model.state_dict()[name], ancestor.state_dict()[name])
    pointers = [p.data_ptr() for p in (*model.parameters(), *inherited.tensors.values())]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_is_kept_is_known_from_shapes_alone(form, ancestor):
    with torch.device("meta"):
        predicted = form.keep(DiT(ancestor.config))
    assert {n: t.shape for n, t in predicted.items()} == {n: t.shape for n, t in form.keep(ancestor).items()}


def test_the_first_or_last_blocks_are_kept_and_the_others_are_random_and_the_identity(ancestor):
    top, bottom = started(FORMS["heur"], ancestor, 5), started(FORMS["auto"], ancestor, 5)
    assert [equal(block(top, i), block(ancestor, i + 1)) for i in range(5)] == [False] * 3 + [True] * 2
    assert [equal(block(bottom, i), block(ancestor, i)) for i in range(5)] == [True] * 3 + [False] * 2
    for random in (top.blocks[0], bottom.blocks[4]):
        assert not random.adaLN_modulation[1].weight.any() and random.attn.qkv.weight.any()
    assert not same(started(FORMS["heur"], ancestor, 5, seed=1), top) and same(started(FORMS["heur"], ancestor, 5), top)


def test_shallow_targets_take_the_last_or_the_first_of_the_kept_blocks(ancestor):
    top, bottom = started(KeptBlocks(blocks=3, top=True), ancestor, 2), started(FORMS["auto"], ancestor, 2)
    assert equal(block(top, 0), block(ancestor, 4)) and equal(block(top, 1), block(ancestor, 5))
    assert equal(block(bottom, 0), block(ancestor, 0)) and equal(block(bottom, 1), block(ancestor, 1))


def test_stages_are_contiguous_and_the_first_ones_longer():
    assert stage_of_layers(12, 5) == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4]
    assert stage_of_layers(6, 1) == [0] * 6 and stage_of_layers(3, 3) == [0, 1, 2]


def test_one_stage_makes_all_blocks_equal_and_as_many_as_layers_copy_the_ancestor(ancestor):
    shared = started(Share(stages=1), ancestor, 4)
    assert all(equal(block(shared, 0), block(shared, i)) for i in range(4))
    mean = torch.stack([block["attn.qkv.weight"] for block in (b.state_dict() for b in ancestor.blocks)]).mean(dim=0)
    torch.testing.assert_close(shared.blocks[0].attn.qkv.weight, mean)
    copied = started(Share(stages=6), ancestor, 6)
    for name, tensor in copied.state_dict().items():
        torch.testing.assert_close(tensor, ancestor.state_dict()[name], rtol=1e-6, atol=1e-7)


def test_linear_blocks_have_no_second_difference_and_a_linear_ancestor_is_recovered(ancestor):
    tensors = [torch.stack([started(Tleg(), ancestor, 5).blocks[i].state_dict()[n] for i in range(5)]) for n in BLOCK_TENSORS]
    assert max(t.diff(n=2, dim=0).abs().max().item() for t in tensors) < 1e-5
    linear = started(Tleg(), ancestor, 6)
    again = started(Tleg(), linear, 6)
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, linear.state_dict()[name], rtol=1e-4, atol=1e-6)
    kept = Tleg().keep(linear)
    slope, base = kept["template.mlp.fc1.weight"][1], kept["template.mlp.fc1.weight"][0]
    torch.testing.assert_close(linear.blocks[3].mlp.fc1.weight, base + 3 / 6 * slope, rtol=1e-4, atol=1e-6)


def test_linear_blocks_without_a_slope_are_shared_ones(ancestor):
    kept = {
        n: torch.stack([t[0], torch.zeros_like(t[0])]) if n.startswith("template.") else t
        for n, t in Tleg().keep(ancestor).items()
    }
    model = Tleg().start(Inherited(config=ancestor.config, tensors=kept), of_depth(ancestor.config, 4), seed=0)
    assert all(equal(block(model, 0), block(model, i)) for i in range(4))


@pytest.mark.parametrize("form", [Share(stages=2), Tleg()], ids=["share", "tleg"])
def test_a_constrained_model_starts_as_the_identity_and_its_merged_form_is_kept(form, ancestor):
    model = form.constrained(ancestor.config, seed=3)
    assert isinstance(model, MixedDiT) and all(p.requires_grad for p in model.parameters())
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([3, 900]), torch.tensor([0, 10])
    assert not model(x, t, y).any(), "adaLN and the final layer are zero"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    torch.testing.assert_close(merge(model)(x, t, y), model(x, t, y))
    inherited = Inherited(config=ancestor.config, tensors=form.keep_of(model))
    assert {n: t.shape for n, t in inherited.tensors.items()} == {n: t.shape for n, t in form.keep(ancestor).items()}
    at_own_size = form.start(inherited, ancestor.config, seed=0)
    torch.testing.assert_close(at_own_size(x, t, y), model(x, t, y))


def test_complete_factors_of_every_layer_reproduce_the_ancestor(ancestor):
    inherited = Inherited(config=ancestor.config, tensors=PerLayerSvd().keep(ancestor))
    model = PerLayerSvd().start(inherited, ancestor.config, seed=0)
    assert isinstance(model, PerLayerFactorizedDiT)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"sigma.{m}" for m in ("qkv", "o", "in", "out", "adaLN")}
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([3, 900]), torch.tensor([0, 10])
    torch.testing.assert_close(model(x, t, y), ancestor(x, t, y), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merge(model)(x, t, y), model(x, t, y))


def test_a_truncated_rank_is_the_best_approximation_of_every_layer(ancestor):
    model = started(PerLayerSvd(rank=4), ancestor, 6)
    for own, of_ancestor in zip(model.blocks, ancestor.blocks, strict=True):
        error = (own.mlp.fc1.weight - of_ancestor.mlp.fc1.weight).square().sum()
        dropped = torch.linalg.svdvals(of_ancestor.mlp.fc1.weight)[4:].square().sum()
        torch.testing.assert_close(error, dropped, rtol=1e-4, atol=1e-7)


def test_layers_come_from_the_nearest_source_layer():
    assert nearest_layers(6, 6) == [0, 1, 2, 3, 4, 5] and nearest_layers(6, 3) == [0, 2, 5] and nearest_layers(6, 1) == [2]
    assert nearest_layers(4, 8) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_matched_rank_takes_no_more_than_factors_shared_by_all_layers(ancestor):
    size = ancestor.config.size
    rank = rank_matched_to_shared_factors(size)
    kept = PerLayerSvd(rank=rank).keep(ancestor)
    own = sum(t.numel() for n, t in kept.items() if n.startswith(("left.", "right.")))
    assert own <= 23 * size.width * size.width, "FINE at r = d"


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (KeptBlocks(blocks=7, top=True), "blocks is 7; it must be 1 to 6, the source's depth"),
        (KeptBlocks(blocks=0, top=False), "blocks is 0; it must be 1 to 6, the source's depth"),
        (Share(stages=7), "stages is 7; it must be 1 to 6, the source's depth"),
    ],
)
def test_options_that_do_not_fit_the_source_are_named(form, said, ancestor):
    assert form.misfit(ancestor.config.size) == said


def test_sizes_that_cannot_be_made_are_refused_with_what_can(ancestor):
    source = ancestor.config.size
    narrow, shallow = ModelSize(depth=4, width=8, num_heads=1), ModelSize(depth=2, width=16, num_heads=2)
    for form in FORMS.values():
        assert form.misfit(source) is None and form.refusal(source, source) is None
        assert form.refusal(source, narrow) == "it makes no width but the source's, 16"
    assert Share(stages=3).refusal(source, shallow) == "3 stages need at least 3 layers"
