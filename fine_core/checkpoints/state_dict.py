"""State dicts as people save them: under `ema` or `model`, behind wrappers' prefixes, in half precision, beside arguments.

No code of a file is executed: pickles are read with `weights_only`.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fine_core.checkpoints.native import CheckpointError, check_is_no_pointer

KEYS = ("ema", "ema_state_dict", "ema_model", "model_ema", "model", "model_state_dict", "state_dict", "module")
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # may stand within a name
FIRST = "x_embedder.proj.weight"  # a tensor that every DiT has
# What people keep beside the weights: plain values, which construct nothing.
HARMLESS = [argparse.Namespace, PosixPath, PurePosixPath, (PosixPath, "pathlib.Path"), np.dtype]
HARMLESS += [(np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
HARMLESS += [type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")]


@dataclass(frozen=True, kw_only=True)
class StateDict:
    """Tensors under the public names, and what was done to get them, for people."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pt` or `.safetensors` file under the names that it has. Raises CheckpointError."""
    return _choose(_read(path), path)[0]


def read_dit(path: Path) -> StateDict:
    """The tensors of a DiT. Raises CheckpointError for a file that is damaged, would execute code, or holds something else."""
    content = _read(path)
    tensors, notes = _choose(content, path)
    if any("lora_" in name or ".base_layer." in name for name in tensors):
        raise CheckpointError(f"{path} holds a LoRA or another adapter; merge it into its model first, and save that")
    _check_predicts_noise(content, tensors, path)
    tensors, prefix_notes = _without_wrappers(tensors)
    return StateDict(tensors=tensors, notes=(*notes, *prefix_notes))


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    check_is_no_pointer(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {forbidden[1]}, which a checkpoint has no use for" if forbidden else "it is no checkpoint"
        raise CheckpointError(f"{path} is refused: {reason}; nothing of it was executed") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {str(error).splitlines()[0]}") from error


def _choose(content: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict of a training state: of its averaged weights, if it has any."""
    notes: list[str] = []
    if isinstance(content, dict):
        for key in KEYS:
            found = content.get(key)
            if isinstance(found, dict) and found:
                notes += [] if key == "ema" else [f"its {key}"]
                content = found
                break
            if isinstance(found, dict):
                notes.append(f"its {key} is empty")
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path} holds no state dict")
    return content, notes


def _without_wrappers(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Names without the prefixes of DataParallel, compile, Lightning and the like; counters beside the model are dropped."""
    names = {name: _unwrapped(name) for name in tensors}
    prefix = next((name.removesuffix(FIRST) for name in names.values() if name.endswith(FIRST)), "")
    kept = {new.removeprefix(prefix): tensors[old] for old, new in names.items() if new.startswith(prefix)}
    dropped = [name for name in names.values() if not name.startswith(prefix)]
    removed = sorted({wrapper for name in tensors for wrapper in WRAPPERS if wrapper in name} | ({prefix} - {""}))
    notes = [f"prefix {', '.join(removed)} taken off"] if removed else []
    return kept, notes + ([f"left out: {_listed(dropped)}"] if dropped else [])


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check_predicts_noise(content: Any, tensors: dict[str, Tensor], path: Path) -> None:
    """Raises CheckpointError for a SiT, whose tensors are a DiT's, and which predicts a velocity."""
    arguments = content.get("args") if isinstance(content, dict) else None
    given = arguments if isinstance(arguments, dict) else vars(arguments) if isinstance(arguments, argparse.Namespace) else {}
    model, prediction = str(given.get("model", "")), str(given.get("prediction", ""))
    projectors = any("projectors." in name for name in tensors)
    if "SiT" in model or prediction in ("velocity", "v", "score") or "path_type" in given or projectors:
        what = f"of {model}" if model else f"with {'projectors' if projectors else 'its arguments'}"
        raise CheckpointError(
            f"{path} is a checkpoint {what}, a SiT: it predicts a velocity and not noise; name a checkpoint of a DiT"
        )
