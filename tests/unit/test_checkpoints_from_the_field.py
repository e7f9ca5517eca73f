"""Checkpoints as people publish them: wrapped, in half precision, beside arguments, in other files, or of another model."""

import argparse
import json
from collections import defaultdict
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from fine_core.checkpoints import CheckpointError, export_diffusers, load_model, save_model
from fine_core.checkpoints.__main__ import main
from fine_core.checkpoints.formats import open_any
from fine_core.checkpoints.native import config_to_json, save_tensors
from fine_core.data.latents import vae_sha256
from fine_core.dit import DiTConfig, ModelSize
from sweeps.size_grid import main as size_grid
from tests.pictures import vae_folder
from tests.unit.test_dit import randomized

CONFIG = DiTConfig(size=ModelSize(depth=2, width=32, num_heads=4), input_size=8, patch_size=2, in_channels=4, num_classes=5)
TABLE = "y_embedder.embedding_table.weight"
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
    "lightning with an average": (
        lambda t: {"state_dict": {n: torch.zeros_like(v) for n, v in behind("model.", t).items()} | behind("ema_model.", t)},
        "prefix ema_model. taken off; left out: model.",
    ),
    "an average among counters": (lambda t: {"ema": t | {"decay": 0.999, "n": torch.tensor(7)}, "model": {}}, "left out: n"),
    "an average without names": (
        lambda t: {"ema": {"decay": 0.999, "shadow_params": list(t.values())}, "model": t},
        "its ema has no weights of a model; its model",
    ),
    "an average within": (lambda t: {"ema": {"module": t, "step": 3}, "model": {}}, "its module"),
    "arrays, bytes and dates": (
        lambda t: {
            "model": t,
            "args": argparse.Namespace(
                betas=np.array([0.9, 0.999]),
                size=np.uint8(8),
                flags=np.array([True]),
                at=datetime(2026, 1, 2),
                on=date(2026, 1, 2),
            ),
        },
        "its model",
    ),
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
    "sit": (
        lambda t: {"ema": t, "args": argparse.Namespace(model="SiT-XL/2")},
        "says model SiT-XL/2: its model does not",
    ),
    "sit by its folder": (
        lambda t: {"ema": t, "args": {"out": "results/003-SiT-B-2-Linear"}},
        "SiT-B-2-Linear: its model does",
    ),
    "repa": (lambda t: {"ema": t | {"projectors.0.0.weight": torch.zeros(2)}, "steps": 4}, "it predicts a velocity"),
    "path type": (lambda t: {"model": t, "args": {"path_type": "linear"}}, "says path_type linear: its model does not predict"),
    "hyperparameters": (
        lambda t: {"state_dict": t, "hyper_parameters": {"prediction": "velocity"}},
        "says prediction velocity",
    ),
    "nested config": (lambda t: {"model": t, "config": {"transport": {"prediction": "x0"}}}, "says transport: its model"),
    "deep config": (
        lambda t: {"model": t, "cfg": {"a": {"loss": {"prediction_type": "v_prediction"}}}},
        "says prediction_type v_",
    ),
    "objective": (lambda t: {"model": t, "args": {"objective": "pred_x0"}}, "says objective pred_x0"),
    "xstart": (lambda t: {"model": t, "args": argparse.Namespace(predict_xstart=True)}, "says predict_xstart: its model"),
    "enum": (lambda t: {"model": t, "args": {"model_mean_type": "ModelMeanType.START_X"}}, "says model_mean_type"),
    "class": (
        lambda t: {"model": t, "noise_scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler"}},
        "says _class_name FlowMatch",
    ),
    "schedule": (lambda t: {"model": t, "args": {"noise_schedule": "squaredcos_cap_v2"}}, "another noise schedule than DiT's"),
    "steps": (lambda t: {"model": t, "args": {"diffusion_steps": 4000}}, "says diffusion_steps 4000: another noise schedule"),
    "one row": (lambda t: t | {TABLE: torch.zeros(1, 32)}, "has one row: a model of one class without a null label?"),
    "another number": (
        lambda t: {"model": t, "args": {"num_classes": 1000}},
        "it says 1000 classes, but its label table has 6",
    ),
    "not a number": (
        lambda t: t | {"blocks.1.mlp.fc1.bias": torch.full((128,), float("nan"))},
        "not finite (NaN or infinite) in b",
    ),
    "other objects": (
        lambda t: {"model": t, "log": defaultdict(list, loss=[1.0])},
        "asks for collections.defaultdict",
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


SAID = {
    "as DiT's code": {"args": argparse.Namespace(model="DiT-S/2", num_classes=5, class_dropout_prob=0.1, predict_xstart=False)},
    "as guided-diffusion": {"args": {"noise_schedule": "linear", "diffusion_steps": 1000, "predict_xstart": False}},
    "as diffusers": {"config": {"prediction_type": "epsilon", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}},
    "as an enum": {"args": {"model_mean_type": "ModelMeanType.EPSILON", "objective": "mse", "lr_scheduler": "cosine"}},
    "a situation": {"args": {"out": "runs/situation-flowers-repair"}},
}


@pytest.mark.parametrize("name", SAID)
def test_what_says_noise_is_read(name, tensors, tmp_path):
    torch.save({"model": tensors} | SAID[name], tmp_path / "v1-dit.pt")
    assert same(open_any(tmp_path / "v1-dit.pt", num_heads=4)[0], tensors)


@pytest.mark.parametrize(
    "name", ["SiT-XL-2-256x256.pt", "dit_velocity.safetensors", "my-repa.pt", "flow-matching-b.pt", "x0.pt"]
)
def test_a_file_that_only_its_name_gives_away_is_refused(name, tensors, tmp_path):
    path = tmp_path / name
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    with pytest.raises(CheckpointError, match="by its name the model does not predict noise"):
        open_any(path, num_heads=4)
    torch.save({"model": tensors, "args": {"prediction_type": "epsilon"}}, tmp_path / "x0-noise.pt")
    open_any(tmp_path / "x0-noise.pt", num_heads=4)


def test_metadata_of_a_safetensors_file_is_read(tensors, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors", metadata={"modelspec.prediction_type": "v"})
    with pytest.raises(CheckpointError, match="says prediction_type v"):
        open_any(tmp_path / "x.safetensors", num_heads=4)


@pytest.mark.parametrize("fact", [{"num_classes": 6}, {"class_dropout_prob": 0.0}, {"model": {"num_classes": 6}}])
def test_a_table_without_a_null_label_is_known_by_what_is_said(fact, tensors, tmp_path):
    torch.save({"model": tensors, "args": fact}, tmp_path / "x.pt")
    found, kind = open_any(tmp_path / "x.pt", num_heads=4)
    assert (found.config.num_classes, found.config.has_null_label) == (6, False)
    assert "6 rows without a null label; one was added, the mean of the others" in kind
    table = found.y_embedder.embedding_table.weight
    assert torch.equal(table[:6], tensors[TABLE]) and torch.equal(table[6], tensors[TABLE].mean(dim=0))
    save_model(found, tmp_path / "again.safetensors")
    assert load_model(tmp_path / "again.safetensors").config == found.config


def test_the_number_of_classes_can_be_said(tensors, tmp_path, capsys):
    torch.save(tensors, tmp_path / "x.pt")
    given = ["import", str(tmp_path / "x.pt"), "--num-heads", "4"]
    main([*given, "--num-classes", "6", "--out", str(tmp_path / "out.safetensors")])
    assert "6 classes without a null label" in capsys.readouterr().out
    assert open_any(tmp_path / "x.pt", num_heads=4, num_classes=5)[0].config.has_null_label
    with pytest.raises(SystemExit):
        main([*given, "--num-classes", "9", "--out", str(tmp_path / "other.safetensors")])
    assert "has 6 rows: 5 classes and a null label, or 6; not 9" in capsys.readouterr().err
    torch.save(tensors | {TABLE: torch.ones(1, 32)}, tmp_path / "one.pt")
    assert not open_any(tmp_path / "one.pt", num_heads=4, num_classes=1)[0].config.has_null_label


WITHOUT = ["--bank-guidance-scale", "1", "--forgetting", "none", "--widths", "32", "--depths", "2"]


def test_guidance_and_forgetting_need_a_null_label(tmp_path):
    size = ModelSize(depth=2, width=32, num_heads=2)
    config = DiTConfig(size=size, input_size=8, patch_size=2, in_channels=1, num_classes=10, has_null_label=False)
    save_model(randomized(config, seed=1), tmp_path / "x.safetensors")
    common = ["--source", str(tmp_path / "x.safetensors"), "--dry-run", "--storage-path", str(tmp_path / "store")]
    wanted = {
        ("--guidance-scale", "2"): "the source has no null label, which guidance needs; set --guidance-scale 1",
        ("--bank-guidance-scale", "1.5"): "set --bank-guidance-scale 1",
        ("--bank-guidance-scale", "1"): "under which forgetting is measured; set --forgetting none",
    }
    for options, message in wanted.items():
        answer = CliRunner().invoke(size_grid, [*common, *options])
        assert answer.exit_code == 2 and message in answer.output, answer.output
    for more in (["--transfer", "diff-tuning-kd"], ["--fine-teacher-weight", "1"]):
        answer = CliRunner().invoke(size_grid, [*common, *WITHOUT, *more])
        assert answer.exit_code == 2 and "would follow it; leave it out" in answer.output, answer.output
    answer = CliRunner().invoke(size_grid, [*common, *WITHOUT])
    assert answer.exit_code == 0, answer.output


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


@pytest.mark.parametrize("config", [{"prediction_type": "v_prediction"}, {"_class_name": "FlowMatchEulerDiscreteScheduler"}])
def test_a_pipeline_whose_scheduler_is_of_another_prediction_is_refused(config, folder):
    path = folder.parent / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    for place in (folder, folder.parent):
        with pytest.raises(CheckpointError, match="scheduler_config.json says .*: its model does not predict noise"):
            open_any(place)


def test_another_epsilon_is_a_note(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"norm_eps": 1e-4}))
    assert open_any(folder)[1] == "diffusers folder (norm_eps 0.0001 before the MLP is taken as 1e-6)"


@pytest.mark.parametrize("kind", ["bin", "fp16", "fp16.bin"])
def test_other_weight_files_of_a_folder_are_read(kind, folder, model, tensors):
    from diffusers import DiTTransformer2DModel

    theirs = DiTTransformer2DModel.from_pretrained(folder)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    if kind == "bin":
        theirs.save_pretrained(folder, safe_serialization=False)
    else:
        theirs.half().save_pretrained(folder, variant="fp16", safe_serialization=kind == "fp16")
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


NOT_NOISE = [
    {"target": "velocity"},
    {"prediction_target": "velocity"},
    {"pred": "v"},
    {"output_type": "x0"},
    {"loss_type": "velocity"},
    {"predict_epsilon": False},
    {"predict_noise": "false"},
    {"v_parameterization": True},
    {"use_flow_matching": "yes"},
    {"model": "SiT_XL_2"},
    {"model_type": "SiT"},
    {"trainer": "FlowTrainer"},
    {"noise_scheduler": "cosine"},
    {"timesteps": 4000},
    {"linear_start": 0.00085, "linear_end": 0.012},
    {"rescale_betas_zero_snr": True},
    {"trained_betas": [0.1, 0.2]},
    {"sigma_data": 0.5},
    {"predict_xstart": np.True_},
    {"diffusion_steps": np.int64(4000)},
    {"prediction_type": ["v_prediction"]},
    {"losses": [{"prediction_type": "v_prediction"}]},
    {"config": '{"prediction_type": "v_prediction"}'},
]


@pytest.mark.parametrize("fact", NOT_NOISE, ids=str)
def test_whatever_says_that_noise_is_not_predicted_is_believed(fact, tensors, tmp_path):
    torch.save({"model": tensors, "args": fact}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="its model does not predict noise|another noise schedule"):
        open_any(tmp_path / "x.pt", num_heads=4)


INNOCENT = [
    {"data": "/home/edmund/imagenet", "results": "/data/edmonton"},
    {"path_type": None, "transport": "none", "interpolant": False, "flow_matching": "no", "predict_v": "0"},
    {"predict": True, "prediction": False, "parameterization": "eps"},
    {"prediction": "eps-prediction", "prediction_type": "noise_prediction", "objective": "simple", "target_type": "class"},
    {"num_train_timesteps": "1000", "beta_start": "0.0001", "beta_end": float(np.float32(0.02)), "beta_schedule": "Linear"},
    {"resume": "pretrained/dit-vs-edm.pt", "comment": "not flow matching, plain DDPM", "timesteps": 250},
    {"lr_scheduler": "cosine", "scheduler": {"type": "cosine"}, "loss_type": "mse", "trained_betas": None},
]


@pytest.mark.parametrize("fact", INNOCENT, ids=str)
def test_innocent_words_are_no_reason_to_refuse(fact, tensors, tmp_path):
    torch.save({"model": tensors, "args": fact}, tmp_path / "dit_fm_radio.pt")
    assert same(open_any(tmp_path / "dit_fm_radio.pt", num_heads=4)[0], tensors)


@pytest.mark.parametrize(
    "fact", [{"num_classes": "6"}, {"num_classes": np.int64(6)}, {"class_dropout_prob": "0.0"}, {"p_uncond": 0}]
)
def test_numbers_of_classes_of_any_kind_are_understood(fact, tensors, tmp_path):
    torch.save({"model": tensors, "args": fact}, tmp_path / "x.pt")
    assert not open_any(tmp_path / "x.pt", num_heads=4)[0].config.has_null_label


@pytest.mark.parametrize(
    "key", ["state_dict_ema", "params_ema", "ema_weights", "net_ema", "averaged_model", "model_ema_state_dict", "swa_model"]
)
def test_averaged_weights_are_taken_under_whatever_name(key, tensors, tmp_path):
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()} | {"pos_embed": tensors["pos_embed"]}
    torch.save({"state_dict": zeros, "model": zeros, key: tensors, "ema_decay": 0.9}, tmp_path / "x.pt")
    found, kind = open_any(tmp_path / "x.pt", num_heads=4)
    assert same(found, tensors) and f"its {key}" in kind
    torch.save({"ema": {"decay": 0.9, "shadow": tensors}, "model": zeros}, tmp_path / "y.pt")
    assert same(open_any(tmp_path / "y.pt", num_heads=4)[0], tensors)


BROKEN = {
    "empty": (lambda t, path: path.write_bytes(b""), "is not a readable checkpoint"),
    "quantized": (lambda t, path: torch.save({n: (v * 127).to(torch.int8) for n, v in t.items()}, path), "is int8 and strided"),
    "complex": (lambda t, path: torch.save({n: v.to(torch.complex64) for n, v in t.items()}, path), "weights are dense floats"),
    "sparse": (lambda t, path: torch.save(t | {TABLE: t[TABLE].to_sparse()}, path), "sparse_coo; weights are dense floats"),
    "names": (lambda t, path: torch.save(t | {0: torch.zeros(1)}, path), "tensors whose names are no texts"),
    "block": (lambda t, path: torch.save(t | {"blocks.x.y": torch.zeros(1)}, path), "does not fit its config"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_state_dict_of_floats_is_one_line(name, tensors, tmp_path, capsys):
    write, message = BROKEN[name]
    write(tensors, tmp_path / "x.pt")
    with pytest.raises(SystemExit):
        main(["import", str(tmp_path / "x.pt"), "--num-heads", "4", "--out", str(tmp_path / "out.safetensors")])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: ") and message in said, said


def test_a_damaged_byte_anywhere_is_one_line(tensors, tmp_path):
    torch.save(tensors, tmp_path / "whole.pt")
    content, generator = (tmp_path / "whole.pt").read_bytes(), np.random.default_rng(0)
    for place in generator.integers(0, len(content), 150):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        (tmp_path / "x.pt").write_bytes(damaged)
        try:
            open_any(tmp_path / "x.pt", num_heads=4)
        except CheckpointError as error:
            assert "\n" not in str(error)


def test_our_own_file_of_another_version_or_precision_is_one_line(model, tensors, tmp_path):
    config = config_to_json(model.config)
    for changed, message in (({**config, "qk_norm": True}, "of another version of this project"), ({}, "of another version")):
        save_tensors(tmp_path / "x.safetensors", tensors, kind="dit", config=changed)
        with pytest.raises(CheckpointError, match=message):
            open_any(tmp_path / "x.safetensors")
    save_tensors(tmp_path / "x.safetensors", {n: t.half() for n, t in tensors.items()}, kind="dit", config=config)
    with pytest.raises(CheckpointError, match="has weights in float16; files of this project are float32"):
        open_any(tmp_path / "x.safetensors")


def test_a_folder_whose_config_does_not_fit_its_weights_is_refused(folder):
    path, weights = folder / "config.json", folder / "diffusion_pytorch_model.safetensors"
    config, whole = json.loads(path.read_text()), load_file(weights)
    path.write_text(json.dumps(config | {"num_layers": 1}))
    with pytest.raises(CheckpointError, match="its config does not fit its weights, unexpected keys: transformer_blocks.1"):
        open_any(folder)
    path.write_text(json.dumps(config | {"_class_name": "SD3Transformer2DModel"}))
    with pytest.raises(CheckpointError, match="holds a SD3Transformer2DModel, not a DiT"):
        open_any(folder)
    path.write_text(json.dumps(config))
    save_file({name: tensor for name, tensor in whole.items() if "ff.net.0" not in name}, weights)
    with pytest.raises(CheckpointError, match="missing keys: transformer_blocks.0.ff.net.0"):
        open_any(folder)
