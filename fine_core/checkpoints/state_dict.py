"""State dicts as people save them: under `ema` or `model`, behind wrappers' prefixes, in half precision, beside arguments.

No code of a file is executed: pickles are read with `weights_only`.
"""

from __future__ import annotations

import argparse
import pickle
import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fine_core.checkpoints.native import CheckpointError, check_is_no_pointer
from fine_core.checkpoints.said import Said, check_file_name, check_predicts_noise, said_in, says_noise
from fine_core.text import listed

KEYS = ("ema", "ema_state_dict", "ema_model", "model_ema", "model", "model_state_dict", "state_dict", "module")
AVERAGE = re.compile(r"(?<![a-z])(ema|averaged?|shadow|swa)(?![a-z])", re.I)  # of weights, in a key
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # may stand within a name
FIRST = "x_embedder.proj.weight"  # a tensor that every DiT has
NESTING = 3  # {"ema": {"module": {"state_dict": ...}}}
# What people keep beside the weights: plain values, which construct nothing.
_NUMPY = "numpy.{}.multiarray.{}"
HARMLESS = [argparse.Namespace, PosixPath, PurePosixPath, (PosixPath, "pathlib.Path"), np.dtype, np.ndarray]
HARMLESS += [PureWindowsPath, (PureWindowsPath, "pathlib.WindowsPath"), date, datetime, timedelta, timezone]
HARMLESS += [list, dict, set, int, float, str, bool]  # as types
HARMLESS += [(np._core.multiarray.scalar, _NUMPY.format(core, "scalar")) for core in ("core", "_core")]
HARMLESS += [(np._core.multiarray._reconstruct, _NUMPY.format(core, "_reconstruct")) for core in ("core", "_core")]
HARMLESS += sorted({type(np.dtype(kind)) for kind in np.typecodes["All"] if kind not in "OV"}, key=str)


@dataclass(frozen=True, kw_only=True)
class StateDict:
    """Tensors under the public names; what the file says beside them; and what was done to get them, for people."""

    tensors: dict[str, Tensor]
    said: Said
    notes: tuple[str, ...] = ()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pt` or `.safetensors` file under the names that it has. Raises CheckpointError."""
    return _choose(_read(path), path, last="")[0]


def read_dit(path: Path) -> StateDict:
    """The tensors of a DiT. Raises CheckpointError for a file that is damaged, would execute code, or holds something else."""
    content = _read(path)
    said = said_in(content) + _metadata(path)
    tensors, notes = _choose(content, path, last=FIRST)
    if any("lora_" in name or ".base_layer." in name for name in tensors):
        raise CheckpointError(f"{path} holds a LoRA or another adapter; merge it into its model first, and save that")
    if any("projectors." in name for name in tensors):
        raise CheckpointError(f"{path} has projectors, as a REPA: it predicts a velocity; name a checkpoint of a DiT")
    check_predicts_noise(said, str(path))
    if not says_noise(said):
        check_file_name(path.name)
    tensors, prefix_notes = _without_wrappers(tensors)
    for name, tensor in tensors.items():
        if not tensor.dtype.is_floating_point or tensor.is_sparse or tensor.is_quantized or tensor.is_meta:
            kind = "without values" if tensor.is_meta else f"{tensor.dtype} and {tensor.layout}".replace("torch.", "")
            raise CheckpointError(f"{path}: {name} is {kind}; weights are dense floats, save them before they are quantized")
    return StateDict(tensors=tensors, said=said, notes=(*notes, *prefix_notes))


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    check_is_no_pointer(path)
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {forbidden[1]}, which a checkpoint has no use for" if forbidden else "it is no checkpoint"
        raise CheckpointError(f"{path} is refused: {reason}; nothing of it was executed") from error
    except Exception as error:  # a damaged file makes torch's reader raise whatever it runs into
        lines = str(error).strip().splitlines()
        raise CheckpointError(f"{path} is not a readable checkpoint: {lines[0] if lines else type(error).__name__}") from error


def _metadata(path: Path) -> Said:
    if path.suffix.lower() != ".safetensors":
        return []
    with safe_open(path, framework="pt") as file:
        return said_in(file.metadata() or {})


def _choose(content: Any, path: Path, *, last: str) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in a training state, of the averaged weights if there are any; and notes. Some name ends with `last`."""
    notes: list[str] = []
    for _ in range(NESTING):
        if not isinstance(content, dict):
            break
        names = [key for key in content if isinstance(key, str)]
        averages = [key for key in names if AVERAGE.search(key) and not isinstance(content[key], Tensor)]
        for key in [*averages, *(key for key in KEYS if key in names and key not in averages)]:
            if _holds(content[key], last, NESTING):
                notes += [] if key == "ema" else [f"its {key}"]
                content = content[key]
                break
            if key in averages and not isinstance(content[key], bool | int | float | str | type(None)):
                notes.append(f"its {key} {'has no weights of a model' if content[key] else 'is empty'}")
        else:
            break
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)} if isinstance(content, dict) else {}
    if any(not isinstance(name, str) for name in tensors):
        raise CheckpointError(f"{path} has tensors whose names are no texts; save the model's state_dict()")
    if not any(name.endswith(last) for name in tensors):
        raise CheckpointError(f"{path} holds no state dict{' of a DiT' if last and tensors else ''}")
    return tensors, notes


def _holds(content: Any, last: str, levels: int) -> bool:
    """Whether a state dict lies in it, at once or under a known name."""
    if not isinstance(content, dict) or levels == 0:
        return False
    if any(isinstance(value, Tensor) and str(name).endswith(last) for name, value in content.items()):
        return True
    known = [key for key in content if isinstance(key, str) and (key in KEYS or AVERAGE.search(key))]
    return any(_holds(content[key], last, levels - 1) for key in known)


def _without_wrappers(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Names without the prefixes of DataParallel, compile, Lightning and the like; counters beside the model are dropped.

    Of several models under prefixes the averaged one is taken.
    """
    names = {name: _unwrapped(name) for name in tensors}
    prefixes = [name.removesuffix(FIRST) for name in names.values() if name.endswith(FIRST)]
    prefix = next((prefix for prefix in prefixes if "ema" in prefix), prefixes[0] if prefixes else "")
    ours = {old for old, new in names.items() if new.startswith(prefix) and tensors[old].ndim > 0}  # a number is a counter
    kept = {names[old].removeprefix(prefix): tensors[old] for old in names if old in ours}
    dropped = [names[old] for old in names if old not in ours]
    removed = sorted({wrapper for name in tensors for wrapper in WRAPPERS if wrapper in name} | ({prefix} - {""}))
    notes = [f"prefix {', '.join(removed)} taken off"] if removed else []
    return kept, notes + ([f"left out: {listed(sorted(dropped))}"] if dropped else [])


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name
