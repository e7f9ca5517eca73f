"""`python -m fine_core.checkpoints import|export`: convert models between this project, the public DiT code and diffusers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fine_core.checkpoints.diffusers_folder import export_diffusers
from fine_core.checkpoints.formats import describe, open_any
from fine_core.checkpoints.native import CheckpointError, save_model
from fine_core.checkpoints.public_dit import export_state_dict
from fine_core.files import file_bytes


def _import(options: argparse.Namespace) -> None:
    out = options.out or Path(f"{options.path.stem}-imported.safetensors")
    if out.exists():
        raise CheckpointError(f"{out} exists already; name another file with --out")
    model, kind = open_any(options.path, num_heads=options.num_heads, num_classes=options.num_classes)
    save_model(model, out)
    print(f"{options.path}: {kind}\n{describe(model.config)}\nwritten to {out} ({file_bytes(out):,} bytes)")


def _export(options: argparse.Namespace) -> None:
    if options.out.exists():
        raise CheckpointError(f"{options.out} exists already; name another")
    model, _ = open_any(options.path, num_heads=options.num_heads, num_classes=options.num_classes)
    if options.out.suffix in (".pt", ".safetensors"):
        if options.vae or options.plain:
            raise CheckpointError("--vae and --plain are for diffusers folders; leave them out, or name a folder")
        export_state_dict(model, options.out)
    else:
        export_diffusers(model, options.out, vae=_load_vae(options.vae), plain=options.plain)
    print(f"{describe(model.config)}\nwritten to {options.out} ({file_bytes(options.out):,} bytes)")


def _load_vae(folder: Path | None):
    if folder is None:
        return None
    from diffusers import AutoencoderKL

    try:
        return AutoencoderKL.from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is no readable AutoencoderKL: {str(error).splitlines()[0]}") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. A model that cannot be read or written ends the process with one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m fine_core.checkpoints", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="import|export")
    importing = commands.add_parser("import", help="a public .pt, a diffusers folder or our own file, to our format")
    importing.add_argument("path", type=Path)
    importing.add_argument("--out", type=Path, help="file to write [default: NAME-imported.safetensors here]")
    importing.set_defaults(run=_import)
    exporting = commands.add_parser("export", help="to a diffusers folder, or to a flat state dict (.pt or .safetensors)")
    exporting.add_argument("path", type=Path)
    exporting.add_argument("out", type=Path, help="folder, or file that ends in .pt or .safetensors")
    exporting.add_argument("--vae", type=Path, help="diffusers folder of the AutoencoderKL of a model of latents")
    exporting.add_argument("--plain", action="store_true", help="diffusers' own timestep features: outputs deviate")
    exporting.set_defaults(run=_export)
    for command in (importing, exporting):
        command.add_argument("--num-heads", type=int, help="of a public checkpoint of an unpublished size")
        command.add_argument("--num-classes", type=int, help="of a public checkpoint; as many as rows: it has no null label")
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
