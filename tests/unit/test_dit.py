"""DiT against independent implementations: diffusers' transformer, the public timestep formula, torch's FLOP counter."""

import math

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from fine_core.dit import DIT_SIZES, DiT, DiTConfig, ModelSize, count_macs, count_parameters
from fine_core.parameterizations import PARAMETERIZATIONS
from fine_core.parameterizations.losses import training_losses

CONFIGS = [
    DiTConfig(size=ModelSize(depth=1, width=24, num_heads=2), input_size=8, patch_size=4, in_channels=3, num_classes=7),
    DiTConfig(size=ModelSize(depth=3, width=64, num_heads=4), input_size=8, in_channels=4, num_classes=10),
    DiTConfig(size=ModelSize(depth=2, width=48, num_heads=3), input_size=6, in_channels=1, num_classes=5, learn_sigma=False),
]


def randomized(config: DiTConfig, seed: int) -> DiT:
    """A DiT without any zero weight, so that every path shows in the output."""
    torch.manual_seed(seed)
    model = DiT(config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def diffusers_twin(model: DiT) -> DiTTransformer2DModel:
    """The same network in diffusers, its weights mapped by hand. Every block there has its own copy of the embedders."""
    config, size = model.config, model.config.size
    twin = DiTTransformer2DModel(
        num_attention_heads=size.num_heads,
        attention_head_dim=size.head_dim,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=size.depth,
        sample_size=config.input_size,
        patch_size=config.patch_size,
        num_embeds_ada_norm=config.num_classes,
        norm_eps=1e-6,
    ).eval()
    ours, theirs = model.state_dict(), {}
    for kind in ("weight", "bias"):
        theirs[f"pos_embed.proj.{kind}"] = ours[f"x_embedder.proj.{kind}"]
        theirs[f"proj_out_1.{kind}"] = ours[f"final_layer.adaLN_modulation.1.{kind}"]
        theirs[f"proj_out_2.{kind}"] = ours[f"final_layer.linear.{kind}"]
        for i in range(size.depth):
            mine, block = f"blocks.{i}", f"transformer_blocks.{i}"
            theirs[f"{block}.norm1.emb.timestep_embedder.linear_1.{kind}"] = ours[f"t_embedder.mlp.0.{kind}"]
            theirs[f"{block}.norm1.emb.timestep_embedder.linear_2.{kind}"] = ours[f"t_embedder.mlp.2.{kind}"]
            theirs[f"{block}.norm1.linear.{kind}"] = ours[f"{mine}.adaLN_modulation.1.{kind}"]
            for name, part in zip("qkv", ours[f"{mine}.attn.qkv.{kind}"].chunk(3), strict=True):
                theirs[f"{block}.attn1.to_{name}.{kind}"] = part
            theirs[f"{block}.attn1.to_out.0.{kind}"] = ours[f"{mine}.attn.proj.{kind}"]
            theirs[f"{block}.ff.net.0.proj.{kind}"] = ours[f"{mine}.mlp.fc1.{kind}"]
            theirs[f"{block}.ff.net.2.{kind}"] = ours[f"{mine}.mlp.fc2.{kind}"]
    for i in range(size.depth):
        table = ours["y_embedder.embedding_table.weight"]
        theirs[f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight"] = table
    missing, unexpected = twin.load_state_dict(theirs, strict=False)
    assert not unexpected and set(missing) <= {"pos_embed.pos_embed"}  # positions are computed by either side itself
    return twin


def inputs(config: DiTConfig):
    torch.manual_seed(1)
    x = torch.randn(5, config.in_channels, config.input_size, config.input_size)
    return x, torch.tensor([0, 1, 37, 500, 999]), torch.tensor([0, 1, 2, 3, config.num_classes])


@pytest.mark.parametrize("config", CONFIGS)
def test_outputs_and_eps_loss_equal_diffusers(config):
    config = DiTConfig(**{**vars(config), "timestep_freq_shift": 1})  # diffusers' own convention, see DiTConfig
    model = randomized(config, seed=0)
    x, t, y = inputs(config)
    with torch.no_grad():
        ours = model(x, t, y)
        theirs = diffusers_twin(model)(x, timestep=t, class_labels=y).sample
    assert ours.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    noise, ddpm = torch.randn_like(x), PARAMETERIZATIONS["ddpm"]
    eps_only = lambda x, t, conditions: model(x, t, **conditions)[:, : config.in_channels]  # noqa: E731
    ours = training_losses(ddpm, eps_only, x, t, {"y": y}, noise)
    x_t = ddpm.corrupt(x, t, noise)
    with torch.no_grad():
        eps = diffusers_twin(model)(x_t, timestep=t, class_labels=y).sample[:, : config.in_channels]
    expected = ((eps - noise) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(ours.detach(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_public_timestep_convention_equals_diffusers_without_its_shift(config):
    model = randomized(config, seed=0)
    twin = diffusers_twin(model)
    for block in twin.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    x, t, y = inputs(config)
    with torch.no_grad():
        torch.testing.assert_close(model(x, t, y), twin(x, timestep=t, class_labels=y).sample, atol=1e-5, rtol=1e-5)


def test_timestep_frequencies_are_those_of_the_public_checkpoints():
    embedder = DiT(CONFIGS[1]).t_embedder
    embedder.mlp = torch.nn.Sequential(torch.nn.Identity())
    embedder.mlp[0].weight = torch.zeros(1)
    features = embedder(torch.tensor([7]))[0]
    assert features[3].item() == pytest.approx(math.cos(7 * 10_000 ** (-3 / 128)), abs=1e-6)
    assert features[128 + 3].item() == pytest.approx(math.sin(7 * 10_000 ** (-3 / 128)), abs=1e-6)


@pytest.mark.parametrize(("name", "parameters", "gmacs"), [("DiT-XL/2", 675_129_632, 118.62), ("DiT-S/2", 32_963_360, 6.06)])
def test_presets_have_the_published_counts(name, parameters, gmacs):
    assert count_parameters(DIT_SIZES[name]) == parameters
    assert round(count_macs(DIT_SIZES[name]) / 1e9, 2) == gmacs


@pytest.mark.parametrize("config", [*CONFIGS, DIT_SIZES["DiT-S/4"]])
def test_macs_equal_torchs_flop_counter(config):
    with torch.device("meta"):
        x = torch.zeros(1, config.in_channels, config.input_size, config.input_size)
        with FlopCounterMode(display=False) as counter:
            DiT(config)(x, torch.zeros(1), torch.zeros(1, dtype=torch.long))
    assert count_macs(config) * 2 == counter.get_total_flops()


def test_state_dict_has_the_public_names():
    names = set(DiT(CONFIGS[0]).state_dict())
    block = {
        f"blocks.0.{m}.{k}"
        for m in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
        for k in ("weight", "bias")
    }
    outer = {f"{m}.{k}" for m in ("x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2") for k in ("weight", "bias")}
    final = {f"final_layer.{m}.{k}" for m in ("linear", "adaLN_modulation.1") for k in ("weight", "bias")}
    assert names == block | outer | final | {"pos_embed", "y_embedder.embedding_table.weight"}


def test_a_fresh_dit_outputs_zero():
    x, t, y = inputs(CONFIGS[0])
    assert DiT(CONFIGS[0])(x, t, y).abs().max() == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 0, "width": 32, "num_heads": 2}, "depth is 0"),
        ({"depth": 1, "width": 50, "num_heads": 4}, "not divisible by 4 heads"),
        ({"depth": 1, "width": 6, "num_heads": 1}, "multiple of 4"),
    ],
)
def test_impossible_sizes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ModelSize(**fields)
