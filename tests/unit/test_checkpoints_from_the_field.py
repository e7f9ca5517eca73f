"""Checkpoints as people publish them: wrapped, in half precision, beside arguments, in other files, or of another model."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fine_core.checkpoints import CheckpointError, export_diffusers, load_model
from fine_core.checkpoints.__main__ import main
from fine_core.checkpoints.formats import open_any
from fine_core.data.latents import vae_sha256
from fine_core.dit import DiTConfig, ModelSize
from tests.pictures import vae_folder
from tests.unit.test_dit import randomized

CONFIG = DiTConfig(size=ModelSize(depth=2, width=32, num_heads=4), input_size=8, patch_size=2, in_channels=4, num_classes=5)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture(scope="module")
def model():
    return randomized(CONFIG, seed=1).eval()


@pytest.fixture(scope="module")
def tensors(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def behind(prefix: str, tensors):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def same(found, tensors) -> bool:
    return all(torch.equal(tensor, tensors[name]) for name, tensor in found.state_dict().items())


WRAPPED = {
    "data parallel": (lambda t: behind("module.", t), "prefix module. taken off"),
    "compiled": (lambda t: behind("_orig_mod.", t), "prefix _orig_mod. taken off"),
    "both": (lambda t: behind("module._orig_mod.", t), "prefix _orig_mod., module. taken off"),
    "blocks compiled": (lambda t: {n.replace(".attn", "._orig_mod.attn"): v for n, v in t.items()}, "prefix _orig_mod."),
    "lightning": (lambda t: {"state_dict": behind("model.", t)}, "its state_dict; prefix model. taken off"),
    "lightning and a loss": (
        lambda t: {"state_dict": behind("model.net.", t) | {"loss.scale": torch.ones(1)}},
        "left out: loss.scale",
    ),
    "ema_state_dict": (lambda t: {"ema_state_dict": t, "model": behind("x.", t)}, "its ema_state_dict"),
    "empty ema": (lambda t: {"ema": {}, "model": t}, "its ema is empty; its model"),
    "averaged model": (lambda t: behind("module.", t) | {"n_averaged": torch.tensor(7)}, "left out: n_averaged"),
    "arguments": (
        lambda t: {"ema": t, "args": argparse.Namespace(out=Path("/x"), lr=np.float64(1e-4), n=np.int64(3)), "step": 7},
        "a label table of 6 rows, of which the last is the null label",
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_weights_are_unwrapped_and_it_is_said(name, tensors, tmp_path):
    wrap, note = WRAPPED[name]
    torch.save(wrap(tensors), tmp_path / "x.pt")
    found, kind = open_any(tmp_path / "x.pt", num_heads=4)
    assert found.config == CONFIG and same(found, tensors) and note in kind, kind


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_with_exact_positions(dtype, suffix, model, tensors, tmp_path):
    half = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    path = tmp_path / f"x{suffix}"
    save_file(half, path) if suffix == ".safetensors" else torch.save(half, path)
    found, kind = open_any(path, num_heads=4)
    assert f"{str(dtype).removeprefix('torch.')} converted to float32" in kind
    assert all(tensor.dtype == torch.float32 for tensor in found.state_dict().values())
    assert same(found, {name: tensor.float() for name, tensor in half.items()} | {"pos_embed": model.pos_embed})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_that_was_saved_again_as_float32_is_read(dtype, model, tensors, tmp_path):
    rounded = {name: tensor.to(dtype).float() for name, tensor in tensors.items()}
    torch.save(rounded, tmp_path / "x.pt")
    found, kind = open_any(tmp_path / "x.pt", num_heads=4)
    assert same(found, rounded | {"pos_embed": model.pos_embed}) and "rounded positions replaced" in kind


REFUSED = {
    "lora": (lambda t: t | {"blocks.0.attn.qkv.lora_A.weight": torch.zeros(2, 2)}, "merge it into its model first"),
    "peft": (
        lambda t: behind("base_model.model.", {n.replace("qkv.", "qkv.base_layer."): v for n, v in t.items()}),
        "merge it",
    ),
    "sit": (lambda t: {"ema": t, "args": argparse.Namespace(model="SiT-XL/2")}, "it predicts a velocity and not noise"),
    "repa": (lambda t: {"ema": t | {"projectors.0.0.weight": torch.zeros(2)}, "steps": 4}, "it predicts a velocity"),
    "path type": (lambda t: {"model": t, "args": {"path_type": "linear"}}, "it predicts a velocity"),
    "one row": (
        lambda t: t | {"y_embedder.embedding_table.weight": torch.zeros(1, 32)},
        "has one row: a model without classes",
    ),
    "empty": (lambda t: {"ema": {}, "model": {}}, "holds no state dict"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_dit_that_predicts_noise_is_refused_in_one_line(name, tensors, tmp_path, capsys):
    wrap, message = REFUSED[name]
    torch.save(wrap(tensors), tmp_path / "x.pt")
    with pytest.raises(SystemExit) as end:
        main(["import", str(tmp_path / "x.pt"), "--num-heads", "4", "--out", str(tmp_path / "out.safetensors")])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and said.startswith("error: ") and message in said, said
    assert not (tmp_path / "out.safetensors").exists()


@pytest.fixture()
def folder(model, tmp_path) -> Path:
    """A diffusers folder of a transformer without anything of ours in it."""
    export_diffusers(model, tmp_path / "pipeline", plain=True)
    (tmp_path / "pipeline/transformer/fine-sweeps.safetensors").unlink()
    return tmp_path / "pipeline" / "transformer"


def test_a_published_folder_without_an_epsilon_and_of_an_older_class_is_read(folder, tensors):
    config = json.loads((folder / "config.json").read_text())
    del config["norm_eps"]
    config |= {"_class_name": "Transformer2DModel", "_diffusers_version": "0.12.0.dev0", "norm_type": "ada_norm_zero"}
    (folder / "config.json").write_text(json.dumps(config))
    found, _ = open_any(folder)
    assert torch.equal(found.blocks[0].attn.qkv.weight, tensors["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("kind", ["bin", "fp16"])
def test_other_weight_files_of_a_folder_are_read(kind, folder, model, tensors):
    from diffusers import DiTTransformer2DModel

    theirs = DiTTransformer2DModel.from_pretrained(folder)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    if kind == "bin":
        theirs.save_pretrained(folder, safe_serialization=False)
    else:
        theirs.half().save_pretrained(folder, variant="fp16")
    found, _ = open_any(folder)
    expected = tensors["blocks.1.mlp.fc1.weight"] if kind == "bin" else tensors["blocks.1.mlp.fc1.weight"].half().float()
    assert torch.equal(found.blocks[1].mlp.fc1.weight, expected)


def test_a_pointer_is_called_one_wherever_it_stands(folder, tmp_path):
    for path in (tmp_path / "x.pt", tmp_path / "x.safetensors"):
        path.write_text(POINTER)
        with pytest.raises(CheckpointError, match="is a Git LFS pointer .* `git lfs pull`"):
            open_any(path)
        with pytest.raises(CheckpointError, match="Git LFS pointer"):
            load_model(path)
    (folder / "diffusion_pytorch_model.safetensors").write_text(POINTER)
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        open_any(folder)
    vae_folder(tmp_path)
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_text(POINTER)
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        vae_sha256(tmp_path / "vae")


def test_a_vae_in_another_way_says_what_to_do(tmp_path):
    vae_folder(tmp_path)
    with pytest.raises(CheckpointError, match=f"it is a pipeline, name its folder {tmp_path / 'vae'}"):
        vae_sha256(tmp_path)
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="save it again by diffusers, AutoencoderKL.from_pretrained"):
        vae_sha256(tmp_path / "vae")
