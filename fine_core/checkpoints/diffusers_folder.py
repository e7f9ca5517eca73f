"""Models as diffusers folders: `DiTTransformer2DModel`, and the other parts that `DiTPipeline` samples with.

Three things differ there. Every block has its own copy of the timestep and label embedders: the copies must be equal, and
one is kept. `DiTPipeline` takes row 1000 of the label table as the null class, whatever the number of classes: a smaller
table is stretched to 1,001 rows, and every new row is the null row. The timestep features have other frequencies than in
the public code (`DiTConfig.timestep_freq_shift`). A file beside the weights keeps the original config, so that loading the
folder restores the model bit for bit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from fine_core.checkpoints.native import (
    CheckpointError,
    check_is_no_pointer,
    check_public,
    config_from_json,
    config_to_json,
    load_strictly,
    load_tensors,
    save_tensors,
)
from fine_core.checkpoints.said import check_predicts_noise, said_in
from fine_core.dit import DiT, DiTConfig, ModelSize, position_table
from fine_core.sampling.schedulers import make_scheduler
from fine_core.text import listed

PIPELINE_NULL_CLASS = 1000  # written in DiTPipeline's code
CLASSES = ("DiTTransformer2DModel", "Transformer2DModel", "PublicDiTTransformer2DModel")
WEIGHTS = "diffusion_pytorch_model"  # diffusers' name
SIDECAR = "fine-sweeps.safetensors"  # the config and the positions; diffusers computes its own positions

# our name -> diffusers' name, for both weight and bias
_TOP = {"x_embedder.proj": "pos_embed.proj", "final_layer.adaLN_modulation.1": "proj_out_1", "final_layer.linear": "proj_out_2"}
_BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
_TIMESTEP = {"t_embedder.mlp.0": "timestep_embedder.linear_1", "t_embedder.mlp.2": "timestep_embedder.linear_2"}
_TABLE, _THEIR_TABLE = "y_embedder.embedding_table.weight", "class_embedder.embedding_table.weight"
_KINDS = ("weight", "bias")


def transformer_of(model: DiT, *, plain: bool = False):
    """The same network as a `DiTTransformer2DModel` on the CPU, its label table stretched for `DiTPipeline`.

    A model with the public code's timestep features becomes an instance of our subclass, which computes them. With `plain`
    it becomes diffusers' own class, whose outputs differ. Raises ValueError for more than 1,000 classes (the pipeline would
    take one of them as the null class), for positions scaled to another resolution (diffusers cannot express them) and for
    another parameterization than that of `DiTPipeline`.
    """
    from diffusers import DiTTransformer2DModel

    from fine_core.pipeline.public_transformer import PublicDiTTransformer2DModel

    config, size = model.config, model.config.size
    check_public(config, "a diffusers folder")
    transformer_class = DiTTransformer2DModel if plain or config.timestep_freq_shift == 1 else PublicDiTTransformer2DModel
    if config.num_classes > PIPELINE_NULL_CLASS:
        raise ValueError(f"DiTPipeline takes row 1000 for the null class; this model has {config.num_classes} classes")
    if config.position_scale != 1:
        raise ValueError(
            f"diffusers has no positions scaled by {config.position_scale}; export the model of the other resolution"
        )
    theirs = transformer_class(
        num_attention_heads=size.num_heads,
        attention_head_dim=size.head_dim,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=size.depth,
        sample_size=config.input_size,
        patch_size=config.patch_size,
        num_embeds_ada_norm=PIPELINE_NULL_CLASS,
        norm_eps=1e-6,
    )
    theirs.load_state_dict(_to_diffusers({name: t.detach().cpu() for name, t in model.state_dict().items()}, size.depth))
    return theirs.eval()


def _to_diffusers(ours: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    table = ours[_TABLE]
    stretched = torch.cat([table, table[-1:].expand(PIPELINE_NULL_CLASS + 1 - len(table), -1)])
    theirs: dict[str, Tensor] = {}  # without positions: diffusers computes its own
    for kind in _KINDS:
        theirs |= {f"{their}.{kind}": ours[f"{our}.{kind}"] for our, their in _TOP.items()}
        for i in range(depth):
            mine, block = f"blocks.{i}", f"transformer_blocks.{i}"
            theirs |= {f"{block}.{their}.{kind}": ours[f"{mine}.{our}.{kind}"] for our, their in _BLOCK.items()}
            theirs |= {f"{block}.norm1.emb.{their}.{kind}": ours[f"{our}.{kind}"].clone() for our, their in _TIMESTEP.items()}
            parts = ours[f"{mine}.attn.qkv.{kind}"].chunk(3)
            theirs |= {f"{block}.attn1.to_{name}.{kind}": part.clone() for name, part in zip("qkv", parts, strict=True)}
    return theirs | {f"transformer_blocks.{i}.norm1.emb.{_THEIR_TABLE}": stretched.clone() for i in range(depth)}


def export_diffusers(model: DiT, folder: str | os.PathLike, *, vae=None, plain: bool = False) -> None:
    """Write a folder that `DiTPipeline.from_pretrained` samples from; the scheduler is DDIM on DiT's own schedule.

    `vae` is the AutoencoderKL of a model of latents. Without it the pipeline passes pixels through unchanged. The class
    that does this, and the class with the public code's timestep features (unless `plain`), belong to `fine_core.pipeline`;
    `load_pipeline` loads such a folder. Raises ValueError if diffusers cannot represent the model (see `transformer_of`).
    """
    from diffusers import DiTPipeline

    from fine_core.pipeline.pixel_vae import PixelVAE

    pipeline = DiTPipeline(
        transformer=transformer_of(model, plain=plain),
        vae=PixelVAE() if vae is None else vae,
        scheduler=make_scheduler("ddim", model.config),
    )
    pipeline.save_pretrained(folder)
    sidecar = {"pos_embed": model.pos_embed}
    save_tensors(Path(folder) / "transformer" / SIDECAR, sidecar, kind="diffusers", config=config_to_json(model.config))


def load_pipeline(folder: str | os.PathLike):
    """The `DiTPipeline` of an exported folder. Our classes must be imported first, or diffusers does not find them."""
    from diffusers import DiTPipeline

    import fine_core.pipeline.pixel_vae
    import fine_core.pipeline.public_transformer  # noqa: F401

    return DiTPipeline.from_pretrained(folder)


def load_diffusers(folder: str | os.PathLike) -> tuple[DiT, tuple[str, ...]]:
    """A model from a folder of `DiTTransformer2DModel` or of a pipeline that has one, and what is to be known of it.

    A folder that other software wrote has diffusers' own timestep features (`timestep_freq_shift` 1), and the last row of
    its label table is the null class. Raises CheckpointError, also for a pipeline whose scheduler is of another prediction.
    """
    folder, notes = Path(folder), ()
    _check_scheduler(folder)
    folder = folder / "transformer" if (folder / "transformer").is_dir() else folder
    try:
        from diffusers import DiTTransformer2DModel

        _check_class(folder)
        theirs, loading = DiTTransformer2DModel.from_pretrained(
            folder, low_cpu_mem_usage=False, output_loading_info=True, ignore_mismatched_sizes=True, **_weights_in(folder)
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder} is no readable DiTTransformer2DModel: {str(error).splitlines()[0]}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, loading[what])):
            raise CheckpointError(f"{folder}: its config does not fit its weights, {what.replace('_', ' ')}: {listed(names)}")
    if (folder / SIDECAR).is_file():
        positions, data = load_tensors(folder / SIDECAR, kind="diffusers")
        config = config_from_json(data)
    else:
        config, notes = _config_of(theirs.config, folder)
        positions = {"pos_embed": position_table(config)}
    tensors = _from_diffusers(theirs.state_dict(), config, folder) | positions
    with torch.device("meta"):
        model = DiT(config)
    load_strictly(model, tensors, folder)
    return model, notes


def _check_scheduler(folder: Path) -> None:
    """Raises CheckpointError if the scheduler beside a transformer, or beside its folder, is of another prediction."""
    for place in (folder, folder.parent):
        path = place / "scheduler" / "scheduler_config.json"
        if path.is_file() and (place == folder or folder.name == "transformer"):
            try:
                check_predicts_noise(said_in(json.loads(path.read_text())), str(path))
            except ValueError as error:  # a CheckpointError, or no JSON
                raise CheckpointError(str(error) if isinstance(error, CheckpointError) else f"{path} is no JSON") from error


def _check_class(folder: Path) -> None:
    """Raises CheckpointError for a transformer of another class: diffusers would take what fits, and fill up the rest."""
    found = json.loads((folder / "config.json").read_text()).get("_class_name", CLASSES[0])
    if found not in CLASSES:
        raise CheckpointError(f"{folder} holds a {found}, not a DiT")


def _weights_in(folder: Path) -> dict[str, object]:
    """Which weights of a folder to read: safetensors, else those of a variant such as fp16, else a .bin (`weights_only`)."""
    for file in sorted(folder.glob("*")):
        if file.suffix in (".bin", ".safetensors", ".json"):
            check_is_no_pointer(file)
    suffix = "safetensors" if any(folder.glob(f"{WEIGHTS}*.safetensors")) else "bin"
    plain = any(folder.glob(f"{WEIGHTS}.{suffix}*")) or any(folder.glob(f"{WEIGHTS}-*.{suffix}"))
    variants = [file.name.split(".")[1] for file in sorted(folder.glob(f"{WEIGHTS}.*.{suffix}"))]
    return {
        "use_safetensors": suffix == "safetensors",
        "variant": None if plain or not variants else variants[0],
        "torch_dtype": torch.float32,
    }


def _config_of(theirs, folder: Path) -> tuple[DiTConfig, tuple[str, ...]]:
    if theirs.activation_fn != "gelu-approximate" or not theirs.attention_bias:
        raise CheckpointError(f"{folder} is not a DiT as published: its activation or attention bias differ")
    heads, head_dim = theirs.num_attention_heads, theirs.attention_head_dim
    config = DiTConfig(
        size=ModelSize(depth=theirs.num_layers, width=heads * head_dim, num_heads=heads),
        input_size=theirs.sample_size,
        patch_size=theirs.patch_size,
        in_channels=theirs.in_channels,
        num_classes=theirs.num_embeds_ada_norm,
        learn_sigma=(theirs.out_channels or theirs.in_channels) == 2 * theirs.in_channels,
        timestep_freq_shift=1,
    )
    published = float(theirs.norm_eps or 1e-5) <= 1e-5  # diffusers' default, where the config is silent
    return config, () if published else (f"norm_eps {theirs.norm_eps:g} before the MLP is taken as 1e-6",)


def _from_diffusers(theirs: dict[str, Tensor], config: DiTConfig, folder: Path) -> dict[str, Tensor]:
    depth, first = config.size.depth, "transformer_blocks.0.norm1.emb"
    for i in range(1, depth):
        for name in [f"{their}.{kind}" for their in _TIMESTEP.values() for kind in _KINDS] + [_THEIR_TABLE]:
            if not torch.equal(theirs[f"{first}.{name}"], theirs[f"transformer_blocks.{i}.norm1.emb.{name}"]):
                raise CheckpointError(f"{folder}: block {i} has a {name} of its own, which a DiT cannot have")
    table = theirs[f"{first}.{_THEIR_TABLE}"]
    ours = {_TABLE: torch.cat([table[: config.num_classes], table[-1:]])}
    for kind in _KINDS:
        ours |= {f"{our}.{kind}": theirs[f"{their}.{kind}"] for our, their in _TOP.items()}
        ours |= {f"{our}.{kind}": theirs[f"{first}.{their}.{kind}"] for our, their in _TIMESTEP.items()}
        for i in range(depth):
            mine, block = f"blocks.{i}", f"transformer_blocks.{i}"
            ours |= {f"{mine}.{our}.{kind}": theirs[f"{block}.{their}.{kind}"] for our, their in _BLOCK.items()}
            ours[f"{mine}.attn.qkv.{kind}"] = torch.cat([theirs[f"{block}.attn1.to_{name}.{kind}"] for name in "qkv"])
    return ours
