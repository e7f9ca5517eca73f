"""FINE: factorized equals merged, gradients go where they should, assembly reproduces the source, widths slice consistently."""

import pytest
import torch

from fine_core.checkpoints.native import CheckpointError
from fine_core.dit import DiT, DiTConfig, ModelSize
from fine_core.initializers.fine.factorized import FactorizedDiT, sigma_std
from fine_core.initializers.fine.learngene import SIGMA_INITS, Learngene, interpolate_depth
from fine_core.initializers.fine.widened import WidenedDiT
from fine_core.initializers.matrices import BLOCK_MATRICES, matrix_shape
from fine_core.initializers.rebuilt import merge
from fine_core.initializers.width import WIDTH_AXES, prefix_rows, ranked_rows, select_rows


def config(depth=4, width=32, num_heads=4) -> DiTConfig:
    size = ModelSize(depth=depth, width=width, num_heads=num_heads)
    return DiTConfig(size=size, input_size=8, in_channels=1, num_classes=10, learn_sigma=False)


def factorized(nested=(16,), rank=32) -> FactorizedDiT:
    """A factorized DiT with no zero anywhere."""
    torch.manual_seed(0)
    model = FactorizedDiT(config(), rank=rank, nested_widths=nested)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model


def batch():
    torch.manual_seed(1)
    return torch.randn(6, 1, 8, 8), torch.randint(0, 1000, (6,)), torch.randint(0, 11, (6,))


def output(model, **options) -> torch.Tensor:
    with torch.no_grad():
        return model(*batch(), **options)


@pytest.mark.parametrize("rank", [8, 32, 48])
def test_factorized_forward_equals_merged_dense_forward(rank):
    model = factorized(rank=rank)
    dense = merge(model)
    assert type(dense) is DiT and output(dense).abs().max() > 0.1
    torch.testing.assert_close(output(model), output(dense), atol=1e-5, rtol=1e-5)


def test_merge_unties_the_layers():
    dense = merge(factorized())
    assert dense.blocks[0].attn.qkv.bias.data_ptr() != dense.blocks[1].attn.qkv.bias.data_ptr()
    assert torch.equal(dense.blocks[0].attn.qkv.bias, dense.blocks[1].attn.qkv.bias)


def test_weights_are_u_sigma_v_with_shared_u_and_v():
    model = factorized()
    dense = merge(model)
    for layer, block in enumerate(dense.blocks):
        expected = model.left["in"] @ torch.diag(model.sigma["32"]["in"][layer]) @ model.right["in"].T
        torch.testing.assert_close(block.mlp.fc1.weight, expected, atol=1e-6, rtol=1e-5)


def test_pretraining_gradients_reach_u_v_sigma_of_the_width_in_use():
    model = factorized()
    model(*batch(), width=16).square().mean().backward()
    for m in BLOCK_MATRICES:
        assert model.left[m].grad.abs().sum() > 0 and model.right[m].grad.abs().sum() > 0
        assert model.sigma["16"][m].grad.abs().sum() > 0 and model.sigma["32"][m].grad is None


def test_sigma_phase_trains_sigma_only():
    model = Learngene.from_model(factorized()).assemble(ModelSize(depth=3, width=32, num_heads=4))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"sigma.32.{m}" for m in BLOCK_MATRICES}
    model(*batch()).square().mean().backward()
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trainable)
    assert all(p.grad.abs().sum() > 0 for name, p in model.named_parameters() if name in trainable)


def test_fresh_factors_have_xavier_energy_and_keep_adaln_zero():
    torch.manual_seed(0)
    model = FactorizedDiT(config(depth=64), rank=32)
    for m in ("qkv", "o", "in", "out"):
        rows, columns = matrix_shape(m, 32)
        weights = (model.left[m] * model.sigma["32"][m].detach().unsqueeze(1)) @ model.right[m].T
        assert weights.square().sum(dim=(1, 2)).mean().item() == pytest.approx(2 * rows * columns / (rows + columns), rel=0.1)
    assert model.sigma["32"]["adaLN"].abs().max() == 0
    torch.nn.init.normal_(model.outer["final_layer/linear/weight"])  # zero at first, which would stop every gradient
    model(*batch()).square().mean().backward()
    assert model.sigma["32"]["adaLN"].grad.abs().sum() > 0, "zero sigma is trainable"


@pytest.mark.parametrize("width_mode", ["nested", "slice"])
@pytest.mark.parametrize("width", [32, 64])
def test_random_sigma_has_xavier_energy_at_every_width(width, width_mode):
    torch.manual_seed(0)
    learngene = Learngene.from_model(FactorizedDiT(config(depth=2, width=64, num_heads=8), rank=64))
    size = ModelSize(depth=64, width=width, num_heads=width // 8)
    dense = merge(learngene.assemble(size, sigma_init="random", width_mode=width_mode))
    energy = torch.stack([block.mlp.fc1.weight.square().sum() for block in dense.blocks]).mean().item()
    assert energy == pytest.approx(2 * 4 * width * width / (5 * width), rel=0.15)


@pytest.mark.parametrize("width", [32, 16])
def test_assembly_at_the_source_size_reproduces_the_source(width, tmp_path):
    source = factorized()
    expected = output(source, width=width)
    Learngene.from_model(source).save(tmp_path / "gene.safetensors")
    learngene = Learngene.load(tmp_path / "gene.safetensors")
    assembled = learngene.assemble(ModelSize(depth=4, width=width, num_heads=width // 8))
    torch.testing.assert_close(output(assembled), expected, atol=1e-5, rtol=1e-4)


def test_normalized_factors_have_unit_columns_and_the_same_function():
    model = factorized()
    before = output(model), output(model, width=16)
    model.normalize_factors()
    for m in BLOCK_MATRICES:
        torch.testing.assert_close(model.left[m].norm(dim=0), torch.ones(32))
    torch.testing.assert_close(output(model), before[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output(model, width=16), before[1], atol=1e-5, rtol=1e-4)


def test_sigma_inits():
    learngene = Learngene.from_model(factorized())
    source, size = learngene.sigma[32]["o"], ModelSize(depth=7, width=32, num_heads=4)
    sigma = {init: learngene.assemble(size, sigma_init=init).sigma["32"]["o"].detach() for init in SIGMA_INITS}
    assert all(s.shape == (7, 32) for s in sigma.values())
    torch.testing.assert_close(sigma["identical"], source.mean(0).expand(7, -1))
    torch.testing.assert_close(sigma["linear"][0], source[0])
    torch.testing.assert_close(sigma["linear"][6], source[3])
    torch.testing.assert_close(sigma["linear"][3], (source[1] + source[2]) / 2)
    assert sigma["random"].std().item() == pytest.approx(sigma_std("o", 32, 32), rel=0.2)
    again = learngene.assemble(size, sigma_init="random").sigma["32"]["o"]
    assert torch.equal(sigma["random"], again)


def test_one_layer_takes_the_middle_of_the_source():
    torch.testing.assert_close(interpolate_depth(torch.tensor([[0.0], [1.0], [5.0]]), 1), torch.tensor([[1.0]]))


def test_every_shared_tensor_has_its_width_axes():
    model = factorized()
    assert set(model.shared_tensors()) == set(WIDTH_AXES)
    narrow = FactorizedDiT(config(width=16, num_heads=2), rank=32)
    rows = prefix_rows(model.config.size, narrow.config.size)
    for name, tensor in model.shared_tensors().items():
        assert select_rows(tensor, WIDTH_AXES[name], rows).shape == narrow.shared_tensors()[name].shape, name


def test_qkv_prefix_keeps_whole_heads_of_q_k_and_v():
    wide = torch.arange(96.0).unsqueeze(1)
    rows = prefix_rows(ModelSize(depth=1, width=32, num_heads=4), ModelSize(depth=1, width=16, num_heads=2))
    kept = select_rows(wide, WIDTH_AXES["left.qkv"], rows).squeeze(1).tolist()
    assert kept == [*range(16), *range(32, 48), *range(64, 80)]


def test_slice_picks_the_rows_that_matter_in_every_index_set():
    """Rows outside a chosen half are damped in all tensors: ranking by norm must pick exactly that half."""
    torch.manual_seed(3)
    model = factorized(nested=())
    chosen = {
        "residual": torch.randperm(32)[:16].sort().values,
        "heads": torch.cat([torch.arange(8, 16), torch.arange(24, 32)]),
        "hidden": torch.randperm(128)[:64].sort().values,
    }
    with torch.no_grad():
        for name, tensor in model.shared_tensors().items():
            for dim, index_set, chunks in WIDTH_AXES[name]:
                keep = torch.full((tensor.shape[dim] // chunks,), 0.01)
                keep[chosen[index_set]] = 1
                tensor *= keep.repeat(chunks).reshape([-1 if d == dim else 1 for d in range(tensor.dim())])
    rows = ranked_rows(model.config.size, ModelSize(depth=4, width=16, num_heads=2), model.shared_tensors())
    for index_set, expected in chosen.items():
        assert torch.equal(getattr(rows, index_set), expected), index_set


def test_slice_assembles_a_narrower_model_from_an_ordinary_learngene():
    learngene = Learngene.from_model(factorized(nested=()))
    size = ModelSize(depth=2, width=16, num_heads=2)
    model = learngene.assemble(size, width_mode="slice")
    torch.testing.assert_close(model.sigma["16"]["o"][0].detach(), learngene.sigma[32]["o"][0] * 2**0.5)
    torch.testing.assert_close(output(model), output(merge(model)), atol=1e-5, rtol=1e-5)


def test_a_model_of_twice_the_width_computes_what_the_learngene_does():
    learngene = Learngene.from_model(factorized(nested=()))
    own = learngene.config.size
    model = learngene.assemble(ModelSize(depth=own.depth, width=2 * own.width, num_heads=2 * own.num_heads))
    assert isinstance(model, WidenedDiT)
    trainable = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"sigma", "maps"}
    dense, source = merge(model), merge(learngene.assemble(own))
    # A wider model has a position table of its own; with a copy of the source's the function is the same.
    dense.pos_embed.data = torch.cat([source.pos_embed, source.pos_embed], dim=2)
    torch.testing.assert_close(output(dense), output(source), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output(model), output(merge(model)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sigma_init", SIGMA_INITS)
def test_a_wider_model_of_any_depth_trains_its_sigma_and_its_maps_alone(sigma_init):
    learngene = Learngene.from_model(factorized(nested=()))
    model = learngene.assemble(ModelSize(depth=3, width=48, num_heads=6), sigma_init=sigma_init, seed=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(*batch()).square().mean().backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad == (not name.startswith("fixed.")), name
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    rows = model.shared_tensors()["left.qkv"].unflatten(0, (3, 48))
    assert torch.equal(rows[:, 32:40], rows[:, :8]), "whole heads are copied, within each of q, k and v"


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (ModelSize(depth=2, width=64, num_heads=4), {}, "it makes no heads of 16 channels, only of the source's 8"),
        (ModelSize(depth=2, width=16, num_heads=4), {}, "head_dim 4 differs"),
        (ModelSize(depth=2, width=16, num_heads=2), {"sigma_init": "zero"}, "unknown sigma_init"),
        (ModelSize(depth=2, width=16, num_heads=2), {"width_mode": "fold"}, "unknown width_mode"),
    ],
)
def test_impossible_assemblies_are_refused(size, options, message):
    with pytest.raises(ValueError, match=message):
        Learngene.from_model(factorized()).assemble(size, **options)


def test_a_learngene_file_holds_shared_parts_once(tmp_path):
    learngene = Learngene.from_model(factorized())
    path = tmp_path / "gene.safetensors"
    learngene.save(path)
    sigma = 2 * len(BLOCK_MATRICES) * 4 * 32  # widths x matrices x depth x rank
    assert learngene.num_parameters < path.stat().st_size / 4 - sigma < learngene.num_parameters + 1500
    path.write_bytes(b"\0" * 64)
    with pytest.raises(CheckpointError):
        Learngene.load(path)
