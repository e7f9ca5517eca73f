"""Models on disk: safetensors with the config as JSON in the file's metadata. Nothing here unpickles."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fine_core.dit import DiT, DiTConfig, ModelSize
from fine_core.files import whole_file

METADATA_KEY = "fine-sweeps"
POINTER = b"version https://git-lfs.github.com/spec/"
PUBLIC_PARAMETERIZATION = "ddpm"  # of DiT checkpoints and of `DiTPipeline`


class CheckpointError(ValueError):
    """A file that is damaged, of another kind, or of another shape than asked for."""


def check_is_no_pointer(path: str | os.PathLike) -> None:
    """Raises CheckpointError for what Git LFS keeps in place of a file that was not fetched."""
    with open(path, "rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise CheckpointError(f"{path} is a Git LFS pointer in place of the file; fetch the file with `git lfs pull`")


def save_tensors(path: str | os.PathLike, tensors: dict[str, Tensor], *, kind: str, config: dict) -> None:
    """Write tensors and their JSON config; the file appears whole or not at all."""
    contiguous = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as temporary:
        save_file(contiguous, temporary, metadata=_metadata(kind, config))


def _metadata(kind: str, config: dict) -> dict[str, str]:
    # One entry: safetensors writes several entries in no fixed order, but equal models must give equal files.
    return {METADATA_KEY: json.dumps({"kind": kind, "config": config}, sort_keys=True)}


def predicted_file_bytes(shapes: Mapping[str, Sequence[int]], *, kind: str, config: dict) -> int:
    """Size of the file that `save_tensors` would write for fp32 tensors of these shapes: the data after a JSON header."""
    header: dict[str, Any] = {"__metadata__": _metadata(kind, config)}
    end_bytes = 0
    for name in sorted(shapes):
        start_bytes, end_bytes = end_bytes, end_bytes + 4 * math.prod(shapes[name])
        header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [start_bytes, end_bytes]}
    text_bytes = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-text_bytes // 8) * 8 + end_bytes


def load_tensors(path: str | os.PathLike, *, kind: str) -> tuple[dict[str, Tensor], dict]:
    """Tensors and config of a file written by `save_tensors`. Raises CheckpointError, or FileNotFoundError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    check_is_no_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        header = json.loads(metadata.get(METADATA_KEY, "{}"))
        found, config = header.get("kind", "tensors without a config"), header.get("config")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} has a damaged config: {error}") from error
    if found != kind or not isinstance(config, dict):
        raise CheckpointError(f"{path} holds {found!r}, not {kind!r}" if found != kind else f"{path} has no config")
    return tensors, config


def config_to_json(config: DiTConfig) -> dict:
    """The config without the fields that have the value that they were introduced with: equal models give equal files."""
    content = asdict(config)
    left_out = {f.name for f in fields(config) if "introduced" in f.metadata and content[f.name] == f.metadata["introduced"]}
    return {name: value for name, value in content.items() if name not in left_out}


def config_from_json(data: dict) -> DiTConfig:
    return DiTConfig(**{**data, "size": ModelSize(**data["size"])})


def config_of_file(path: str | os.PathLike, data: Any) -> DiTConfig:
    """The config that a file holds. Raises CheckpointError for one of another version."""
    try:
        return config_from_json(data)
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} has a config of another version of this project: {error}") from error


def check_public(config: DiTConfig, format: str) -> None:
    """Raises CheckpointError for a model that a public format, which has no place for the parameterization, cannot hold."""
    if config.parameterization != PUBLIC_PARAMETERIZATION:
        raise CheckpointError(
            f"{format} holds models of parameterization {PUBLIC_PARAMETERIZATION!r} alone, this one is of "
            f"{config.parameterization!r}"
        )


def save_model(model: DiT, path: str | os.PathLike) -> None:
    """Write a dense DiT with its config."""
    save_tensors(path, model.state_dict(), kind="dit", config=config_to_json(model.config))


def load_model(path: str | os.PathLike, *, expect: DiTConfig | None = None) -> DiT:
    """Load a dense DiT written by `save_model`.

    Raises CheckpointError if the file is damaged, its tensors do not fit its config, or its config is not `expect`.
    """
    tensors, data = load_tensors(path, kind="dit")
    config = config_of_file(path, data)
    wrong = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()} - {"float32"})
    if wrong:
        raise CheckpointError(f"{path} has weights in {', '.join(wrong)}; files of this project are float32, convert it back")
    if expect is not None and config != expect:
        raise CheckpointError(f"{path} holds a model of another shape: {config}, expected {expect}")
    with torch.device("meta"):
        model = DiT(config)
    load_strictly(model, tensors, path)
    return model


def load_strictly(model: torch.nn.Module, tensors: dict[str, Tensor], path: str | os.PathLike) -> None:
    """Put tensors into a model on the meta device. Raises CheckpointError if names or shapes differ."""
    try:
        model.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its config: {str(error).splitlines()[-1].strip()}") from error
