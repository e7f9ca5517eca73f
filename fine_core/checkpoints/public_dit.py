"""Checkpoints of the public DiT code: a flat state dict, alone or under "ema" beside optimizer and arguments.

The architecture follows from the shapes, except the number of heads: it is given, or is that of the published size with the
same depth and width. No code of a file is executed: pickles are read with `weights_only`.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fine_core.checkpoints.native import CheckpointError, check_public, load_strictly
from fine_core.dit import DIT_SIZES, DiT, DiTConfig, ModelSize, position_table

POSITION_TOLERANCE = 1e-5  # the public code computes its table in double precision


def read_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a `.pt` or `.safetensors` file; those under `ema` if the file is a training state.

    Raises CheckpointError for a file that is damaged, would execute code, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {forbidden[1]}, which a checkpoint has no use for" if forbidden else "it is no checkpoint"
        raise CheckpointError(f"{path} is refused: {reason}; nothing of it was executed") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {str(error).splitlines()[0]}") from error
    for key in ("ema", "model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path} holds no state dict")
    return content


def infer_config(tensors: dict[str, Tensor], *, num_heads: int | None = None) -> DiTConfig:
    """The architecture of a flat state dict. If `num_heads` is None, the published size of that depth and width sets it.

    Raises CheckpointError if it is not a DiT's, or if the number of heads stays unknown.
    """
    try:
        width, in_channels, patch_size, _ = tensors["x_embedder.proj.weight"].shape
        num_tokens = tensors["pos_embed"].shape[1]
        rows = tensors["y_embedder.embedding_table.weight"].shape[0]
        out_channels = tensors["final_layer.linear.weight"].shape[0] // patch_size**2
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"these are not the tensors of a DiT: {type(error).__name__} {error}") from error
    depth = 1 + max((int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")), default=-1)
    grid = round(num_tokens**0.5)
    if grid**2 != num_tokens or out_channels not in (in_channels, 2 * in_channels):
        raise CheckpointError(f"{num_tokens} positions and {out_channels} output channels are not those of a DiT")
    try:
        config = DiTConfig(
            size=ModelSize(depth=depth, width=width, num_heads=num_heads or _published_heads(depth, width)),
            input_size=grid * patch_size,
            patch_size=patch_size,
            in_channels=in_channels,
            num_classes=rows - 1,
            learn_sigma=out_channels == 2 * in_channels,
        )
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    return _with_position_scale(config, tensors["pos_embed"])


def _published_heads(depth: int, width: int) -> int:
    for config in DIT_SIZES.values():
        if (config.size.depth, config.size.width) == (depth, width):
            return config.size.num_heads
    raise CheckpointError(f"no published DiT has depth {depth} and width {width}; say its number of heads (--num-heads)")


def _with_position_scale(config: DiTConfig, table: Tensor) -> DiTConfig:
    """The config whose position table is the checkpoint's."""
    for scale in range(1, config.input_size // config.patch_size + 1):
        scaled = replace(config, position_scale=scale)
        if torch.allclose(position_table(scaled), table.float(), atol=POSITION_TOLERANCE, rtol=0):
            return scaled
    raise CheckpointError("its position table is not DiT's 2-D sin-cos table")


def load_public(path: str | os.PathLike, *, num_heads: int | None = None) -> DiT:
    """A model from a public checkpoint, bit for bit. Raises CheckpointError."""
    tensors = read_state_dict(path)
    config = infer_config(tensors, num_heads=num_heads)
    with torch.device("meta"):
        model = DiT(config)
    load_strictly(model, {name: tensor.float() for name, tensor in tensors.items()}, path)
    return model


def export_state_dict(model: DiT, path: str | os.PathLike) -> None:
    """Write the flat state dict under the public names: `.safetensors`, or `.pt` as the public code reads it.

    Raises CheckpointError for another suffix, or a model of another parameterization than the public ones.
    """
    path = Path(path)
    check_public(model.config, "a flat state dict")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    elif path.suffix == ".pt":
        torch.save(tensors, path)
    else:
        raise CheckpointError(f"{path} is neither .safetensors nor .pt")
