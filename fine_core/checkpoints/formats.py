"""Format detection for models on disk, and a one-line description of their architecture."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from fine_core.checkpoints.diffusers_folder import load_diffusers
from fine_core.checkpoints.native import METADATA_KEY, CheckpointError, check_is_no_pointer, load_model
from fine_core.checkpoints.public_dit import load_public
from fine_core.dit import DIT_SIZES, DiT, DiTConfig, count_macs, count_parameters
from fine_core.text import listed


def open_any(path: Path, *, num_heads: int | None = None, num_classes: int | None = None) -> tuple[DiT, str]:
    """A model in any known format, and the format's name: ours, a diffusers folder, or a public checkpoint.

    Raises CheckpointError, also for weights that are not finite.
    """
    model, kind, notes = _open(path, num_heads, num_classes)
    broken = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path} has numbers that are not finite (NaN or infinite) in {listed(broken)}")
    return model, f"{kind} ({'; '.join(notes)})" if notes else kind


def _open(path: Path, num_heads: int | None, num_classes: int | None) -> tuple[DiT, str, tuple[str, ...]]:
    if not path.exists():
        raise CheckpointError(f"no such file or folder: {path}")
    if path.is_dir():
        return _as_said(load_diffusers(path), num_classes, path, "diffusers folder")
    check_is_no_pointer(path)
    if path.suffix == ".safetensors" and _is_ours(path):
        return _as_said((load_model(path), ()), num_classes, path, "fine-sweeps checkpoint")
    model, notes = load_public(path, num_heads=num_heads, num_classes=num_classes)
    return model, "public checkpoint", notes


def _as_said(
    found: tuple[DiT, tuple[str, ...]], num_classes: int | None, path: Path, kind: str
) -> tuple[DiT, str, tuple[str, ...]]:
    model, notes = found
    if num_classes not in (None, model.config.num_classes):
        raise CheckpointError(f"{path} has {model.config.num_classes} classes by its own config, not {num_classes}")
    return model, kind, notes


def _is_ours(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except SafetensorError:
        return False  # a damaged file: the loader reports it


def describe(config: DiTConfig) -> str:
    """The architecture in one line."""
    size = config.size
    names = [name for name, known in DIT_SIZES.items() if (known.size, known.patch_size) == (size, config.patch_size)]
    return (
        f"{names[0] if names else 'DiT'}: depth {size.depth}, width {size.width}, {size.num_heads} heads, patch "
        f"{config.patch_size}, {config.in_channels} x {config.input_size} x {config.input_size}, {config.num_classes} classes"
        f"{'' if config.has_null_label else ' without a null label'}, "
        f"{'learned' if config.learn_sigma else 'fixed'} variance, {config.parameterization}; "
        f"{count_parameters(config):,} parameters, {count_macs(config) / 1e9:.4g} GMAC"
    )
