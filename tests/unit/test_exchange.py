"""Models to and from the public DiT code and diffusers: bit for bit, with the same outputs, and nothing executed."""

import argparse
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from safetensors.torch import load_file, save_file

from fine_core.checkpoints import CheckpointError, export_diffusers, load_model, save_model
from fine_core.checkpoints.__main__ import main
from fine_core.checkpoints.diffusers_folder import load_diffusers, load_pipeline
from fine_core.checkpoints.formats import open_any
from fine_core.checkpoints.public_dit import export_state_dict, load_public
from fine_core.denoiser import LABEL
from fine_core.dit import DIT_SIZES, DiT, DiTConfig, ModelSize
from fine_core.sampling.draw import sample_images
from fine_core.sampling.sampler import SamplerSpec
from tests.unit.test_dit import CONFIGS, inputs, randomized

THEIRS = [replace(config, timestep_freq_shift=1) for config in CONFIGS]
MANY_CLASSES = DiTConfig(size=ModelSize(depth=2, width=32, num_heads=2), input_size=4, num_classes=1000)


def bitwise_equal(a: DiT, b: DiT) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return a.config == b.config and list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def null_as_theirs(labels: torch.Tensor, config: DiTConfig) -> torch.Tensor:
    return torch.where(labels == config.num_classes, 1000, labels)


@pytest.mark.parametrize("config", [*CONFIGS, *THEIRS, MANY_CLASSES])
def test_to_diffusers_and_back_is_bit_exact_and_outputs_agree(config, tmp_path):
    model = randomized(config, seed=3).eval()
    with torch.no_grad():
        model.final_layer.linear.weight.mul_(0.1)  # outputs of about unit size
    export_diffusers(model, tmp_path / "model")
    assert bitwise_equal(model, load_diffusers(tmp_path / "model")[0])
    transformer = load_pipeline(tmp_path / "model").transformer
    x, t, y = inputs(config)
    with torch.no_grad():
        theirs = transformer(x, timestep=t, class_labels=null_as_theirs(y, config)).sample
        torch.testing.assert_close(model(x, t, y), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [THEIRS[1], replace(MANY_CLASSES, timestep_freq_shift=1)])
def test_diffusers_alone_samples_what_we_sample(config, tmp_path):
    """With guidance, so that the null class must be the pipeline's; a model of latents, with its autoencoder beside it."""
    model = randomized(config, seed=4).eval()
    with torch.no_grad():
        model.final_layer.linear.weight.mul_(0.05)  # noise of about unit size, or 5 steps would run away
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, layers_per_block=1).eval()
    export_diffusers(model, tmp_path / "pipe", vae=vae)
    code = "import sys; sys.modules['fine_core'] = None\n"
    code += "from diffusers import DiTPipeline; DiTPipeline.from_pretrained(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "pipe")], check=True, capture_output=True)

    pipeline = DiTPipeline.from_pretrained(tmp_path / "pipe")
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, DDIMScheduler) and pipeline.scheduler.config.beta_schedule == "linear"
    labels = [3, 0, 3]
    options = {"guidance_scale": 2.0, "num_inference_steps": 5, "output_type": "pt"}
    theirs = pipeline(labels, generator=torch.Generator().manual_seed(7), **options).images
    spec = SamplerSpec(sampler="ddim", sampling_steps=5, guidance_scale=2.0)
    latents = sample_images(model, {LABEL: torch.tensor(labels)}, spec, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        ours = (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    assert ours.std() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_model_of_pixels_is_sampled_too(tmp_path):
    model = randomized(replace(CONFIGS[0], learn_sigma=False), seed=5).eval()
    export_diffusers(model, tmp_path / "pipe")
    pipeline = load_pipeline(tmp_path / "pipe")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline([1, 2], generator=torch.Generator().manual_seed(0), num_inference_steps=3, output_type="np").images
    assert images.shape == (2, 8, 8, 3) and images.std() > 0


def test_plain_folders_need_nothing_of_ours_and_deviate(tmp_path):
    model = randomized(CONFIGS[1], seed=3).eval()
    export_diffusers(model, tmp_path / "plain", plain=True)
    transformer = DiTTransformer2DModel.from_pretrained(tmp_path / "plain" / "transformer")
    assert type(transformer) is DiTTransformer2DModel and bitwise_equal(model, load_diffusers(tmp_path / "plain")[0])
    x, t, y = inputs(model.config)
    with torch.no_grad():
        deviation = (model(x, t, y) - transformer(x, timestep=t, class_labels=null_as_theirs(y, model.config)).sample).abs()
    assert deviation[0].max() < 1e-5 < deviation[1:].max(), "at t = 0 the features are the same"


def test_a_folder_that_diffusers_made_has_its_own_timestep_features(tmp_path):
    torch.manual_seed(0)
    theirs = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=3, sample_size=8,
        num_embeds_ada_norm=10, norm_eps=1e-6,
    ).eval()  # fmt: skip
    for block in theirs.transformer_blocks[1:]:  # initialized apart, loaded from one model
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    theirs.save_pretrained(tmp_path / "theirs")
    model, _ = load_diffusers(tmp_path / "theirs")
    assert model.config == DiTConfig(
        size=ModelSize(depth=3, width=32, num_heads=2), input_size=8, num_classes=10, timestep_freq_shift=1
    )
    x, t, y = inputs(model.config)
    with torch.no_grad():
        torch.testing.assert_close(model(x, t, y), theirs(x, timestep=t, class_labels=y).sample, atol=1e-5, rtol=1e-5)

    torch.nn.init.normal_(theirs.transformer_blocks[2].norm1.emb.class_embedder.embedding_table.weight)
    theirs.save_pretrained(tmp_path / "apart")
    with pytest.raises(CheckpointError, match="block 2 has a class_embedder.embedding_table.weight of its own"):
        load_diffusers(tmp_path / "apart")


def test_what_diffusers_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="takes row 1000 for the null class; this model has 1001 classes"):
        export_diffusers(DiT(replace(MANY_CLASSES, num_classes=1001)), tmp_path / "x")
    with pytest.raises(ValueError, match="no positions scaled by 2"):
        export_diffusers(DiT(CONFIGS[1]).at_resolution(16), tmp_path / "x")


def public_file(path: Path, config: DiTConfig, wrapped: bool) -> DiT:
    model = randomized(config, seed=6)
    tensors = model.state_dict()
    if wrapped:  # as the public training code writes it
        other = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        tensors = {"model": other, "ema": tensors, "opt": {"state": {}}, "args": argparse.Namespace(model="DiT-S/2", lr=1e-4)}
    torch.save(tensors, path)
    return model


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("config", [CONFIGS[1], replace(CONFIGS[1], learn_sigma=False, num_classes=1000)])
def test_public_checkpoints_are_read_bit_for_bit(config, wrapped, tmp_path):
    model = public_file(tmp_path / "model.pt", config, wrapped)
    assert bitwise_equal(load_public(tmp_path / "model.pt", num_heads=4)[0], model)
    for name in ("flat.pt", "flat.safetensors"):
        export_state_dict(model, tmp_path / name)
        assert bitwise_equal(load_public(tmp_path / name, num_heads=4)[0], model)
    assert set(load_file(tmp_path / "flat.safetensors")) == set(model.state_dict())


def test_the_heads_of_published_sizes_are_known(tmp_path):
    config = DIT_SIZES["DiT-S/4"]
    torch.save(DiT(config).state_dict(), tmp_path / "s.pt")
    assert load_public(tmp_path / "s.pt")[0].config == config
    public_file(tmp_path / "own.pt", CONFIGS[1], False)
    with pytest.raises(
        CheckpointError, match=r"no published DiT has depth 3 and width 64; say its number of heads \(--num-heads"
    ):
        load_public(tmp_path / "own.pt")
    with pytest.raises(CheckpointError, match="width 64 is not divisible by 5 heads"):
        load_public(tmp_path / "own.pt", num_heads=5)


def test_positions_of_another_resolution_are_recognized(tmp_path):
    model = randomized(CONFIGS[1], seed=0).at_resolution(16)
    torch.save(model.state_dict(), tmp_path / "scaled.pt")
    assert load_public(tmp_path / "scaled.pt", num_heads=4)[0].config == model.config


class Attack:
    """What an attacker pickles: a call that is made when the file is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("place", ["alone", "in ema", "legacy"])
def test_a_pickle_that_would_execute_code_is_refused(place, tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "attack.pt"
    if place == "legacy":
        path.write_bytes(pickle.dumps(Attack(marker)))
    else:
        torch.save(Attack(marker) if place == "alone" else {"ema": {"pos_embed": Attack(marker)}}, path)
    with pytest.raises(CheckpointError, match=r"is refused: .*nothing of it was executed"):
        load_public(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Attack(marker)))
    assert marker.exists(), "the attack works where it is not refused"


def run(*arguments: str, capsys) -> tuple[int, str, str]:
    try:
        main(arguments)
        code = 0
    except SystemExit as exit:
        code = exit.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_imports_says_what_it_found_and_exports(tmp_path, capsys):
    model = public_file(tmp_path / "public.pt", CONFIGS[1], wrapped=True)
    ours = tmp_path / "ours.safetensors"
    code, out, _ = run("import", str(tmp_path / "public.pt"), "--num-heads", "4", "--out", str(ours), capsys=capsys)
    assert code == 0 and "public checkpoint" in out
    assert "DiT: depth 3, width 64, 4 heads, patch 2, 4 x 8 x 8, 10 classes, learned variance" in out
    assert f"({ours.stat().st_size:,} bytes)" in out and bitwise_equal(load_model(ours), model)
    for target in ("folder", "flat.pt"):
        code, out, _ = run("export", str(ours), str(tmp_path / target), capsys=capsys)
        assert code == 0 and "written to" in out
        assert bitwise_equal(open_any(tmp_path / target, num_heads=4)[0], model)
    code, _, err = run("export", str(ours), str(tmp_path / "folder"), capsys=capsys)
    assert code == 2 and "exists already" in err


def damaged(folder: Path, what: str) -> Path:
    path = folder / "model.safetensors"
    save_model(randomized(CONFIGS[1], seed=0), path)
    content = path.read_bytes()
    match what:
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "other tensors":
            save_file({"a": torch.zeros(1)}, path)
        case "truncated pt":
            path = folder / "model.pt"
            torch.save(randomized(CONFIGS[1], seed=0).state_dict(), path)
            path.write_bytes(path.read_bytes()[:1000])
        case "text":
            path = folder / "model.pt"
            path.write_text("no checkpoint at all")
        case "list":
            path = folder / "model.pt"
            torch.save([1, 2], path)
        case "empty folder":
            path = folder / "empty"
            path.mkdir()
        case "another transformer":
            path = folder / "other"
            path.mkdir()
            (path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
        case "missing":
            path = folder / "nowhere.pt"
    return path


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated", "is not a readable safetensors file"),
        ("other tensors", "holds no state dict of a DiT"),
        ("truncated pt", "is not a readable checkpoint"),
        ("text", "is refused"),
        ("list", "holds no state dict"),
        ("empty folder", "is no readable DiTTransformer2DModel"),
        ("another transformer", "is no readable DiTTransformer2DModel"),
        ("missing", "no such file or folder"),
    ],
)
def test_a_bad_file_is_one_line_and_exit_code_2(what, message, tmp_path, capsys):
    path = damaged(tmp_path, what)
    code, _, err = run("import", str(path), "--out", str(tmp_path / "out.safetensors"), capsys=capsys)
    assert code == 2 and err.count("\n") == 1 and err.startswith("error: ") and message in err, err
    assert not (tmp_path / "out.safetensors").exists()


def test_the_module_is_a_command():
    result = subprocess.run([sys.executable, "-m", "fine_core.checkpoints", "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "import" in result.stdout and "RuntimeWarning" not in result.stderr
