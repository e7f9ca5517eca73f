"""Checkpoints of the public DiT code: a flat state dict, alone or under "ema" beside optimizer and arguments.

The architecture follows from the shapes, except the number of heads: it is given, or is that of the published size with the
same depth and width.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fine_core.checkpoints.native import CheckpointError, check_public, load_strictly
from fine_core.checkpoints.said import Said, classes_said, drops_labels
from fine_core.checkpoints.state_dict import read_dit
from fine_core.dit import DIT_SIZES, DiT, DiTConfig, ModelSize, position_table

POSITION_TOLERANCE = 8e-3  # of bfloat16, in which it may have been stored once; the public code computes in double precision
EXACT = 1e-5
LABEL_TABLE = "y_embedder.embedding_table.weight"


def infer_config(
    tensors: dict[str, Tensor], *, num_heads: int | None = None, num_classes: int | None = None, said: Said = ()
) -> DiTConfig:
    """The architecture of a flat state dict. If `num_heads` is None, the published size of that depth and width sets it.

    The label table has a null row last, unless `num_classes`, or what is `said` of the training, tells otherwise. Raises
    CheckpointError if it is not a DiT's, or if the number of heads stays unknown.
    """
    try:
        width, in_channels, patch_size, _ = tensors["x_embedder.proj.weight"].shape
        num_tokens = tensors["pos_embed"].shape[1]
        rows = tensors[LABEL_TABLE].shape[0]
        out_channels = tensors["final_layer.linear.weight"].shape[0] // patch_size**2
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"these are not the tensors of a DiT: {type(error).__name__} {error}") from error
    classes = _classes(rows, num_classes, said)
    numbers = [name.split(".")[1] for name in tensors if name.startswith("blocks.")]
    depth = 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
    grid = round(num_tokens**0.5)
    if grid**2 != num_tokens or out_channels not in (in_channels, 2 * in_channels):
        raise CheckpointError(f"{num_tokens} positions and {out_channels} output channels are not those of a DiT")
    try:
        config = DiTConfig(
            size=ModelSize(depth=depth, width=width, num_heads=num_heads or _published_heads(depth, width)),
            input_size=grid * patch_size,
            patch_size=patch_size,
            in_channels=in_channels,
            num_classes=classes,
            learn_sigma=out_channels == 2 * in_channels,
            has_null_label=classes == rows - 1,
        )
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    return _with_position_scale(config, tensors["pos_embed"])


def _classes(rows: int, given: int | None, said: Said) -> int:
    """How many classes a label table of some rows has: as many, or one fewer where the last is the null label."""
    if given is not None:
        if given not in (rows, rows - 1):
            raise CheckpointError(
                f"its label table has {rows} rows: {rows - 1} classes and a null label, or {rows}; not {given}"
            )
        return given
    named = classes_said(said)
    fitting = [number for number in named if number in (rows, rows - 1)]
    if fitting:
        return fitting[0]
    if named:
        raise CheckpointError(
            f"it says {named[0]} classes, but its label table has {rows} rows; say the number (--num-classes)"
        )
    if rows == 1:
        raise CheckpointError("its label table has one row: a model of one class without a null label? Say so: --num-classes 1")
    return rows - 1 if drops_labels(said) else rows


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


def load_public(
    path: str | os.PathLike, *, num_heads: int | None = None, num_classes: int | None = None
) -> tuple[DiT, tuple[str, ...]]:
    """A model from a public checkpoint, bit for bit, in float32; and what was done to read it. Raises CheckpointError."""
    found = read_dit(Path(path))
    try:
        config = infer_config(found.tensors, num_heads=num_heads, num_classes=num_classes, said=found.said)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    with torch.device("meta"):
        model = DiT(config)
    tensors = {name: tensor.float() for name, tensor in found.tensors.items()}
    table = tensors[LABEL_TABLE]
    notes = [*found.notes, f"a label table of {len(table)} rows, of which the last is the null label"]
    if not config.has_null_label:
        notes[-1] = f"a label table of {len(table)} rows without a null label; one was added, the mean of the others"
        tensors[LABEL_TABLE] = torch.cat([table, table.mean(dim=0, keepdim=True)])
    exact = position_table(config)
    if not torch.allclose(exact, tensors["pos_embed"], atol=EXACT, rtol=0):
        tensors["pos_embed"] = exact
        notes.append("rounded positions replaced by exact ones")
    kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in found.tensors.values()} - {"float32"})
    notes += [f"{', '.join(kinds)} converted to float32"] if kinds else []
    load_strictly(model, tensors, path)
    return model, tuple(notes)


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
