"""Encode images once by the VAE of a latent diffusion model: sharded Parquet that sweeps take as `--dataset parquet:OUT`."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fine_core.data.by_path import resolve
from fine_core.data.latents import VAE_CONFIG, VAE_WEIGHTS, load_vae, vae_sha256
from fine_core.data.readers.registry import formats
from fine_core.data.registry import load_dataset, rows_in_mixed_order
from fine_core.data.source import DataError, LatentInfo
from fine_core.text import without_password
from sweeps.command_line.inputs import COLUMN_OPTIONS, wanted_from
from sweeps.command_line.parsing import OneLineErrors
from sweeps.command_line.permanent import check_permanent
from sweeps.command_line.session import command_line, say_notes, say_waiting
from sweeps.display.console import plain_console
from sweeps.display.numbers import counted
from sweeps.execution.encoding import encode_shards, finished_shards, plan_shards
from trainables.storage.leases import working
from trainables.storage.store import Store


@click.command(
    cls=OneLineErrors,
    epilog="Example: python sweeps/encode_latents.py --vae sd-vae-ft-ema --data imagefolder:~/pets --out ~/pets-latents",
)
@click.option("--vae", required=True, help="Folder of a diffusers AutoencoderKL.")
@click.option("--data", required=True, help=f"Images: {formats()}.")
@click.option("--out", required=True, help="Folder or URI for the encoded shards.")
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Side in pixels to which images are cropped.",
)
@COLUMN_OPTIONS[0]
@COLUMN_OPTIONS[1]
@click.option("--flip/--no-flip", default=True, show_default=True, help="Encoding of the mirror images too.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Images encoded in one pass.")
@click.option("--shard-images", type=click.IntRange(min=1), default=1024, show_default=True, help="Images per file.")
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes.  [default: as many as fit on the cluster]")
@click.option(
    "--gpus-per-worker", type=click.FloatRange(min=0), default=0.0, show_default=True, help="GPUs per worker, also a fraction."
)
def main(**options) -> None:
    """Encode every image, and its mirror image, to the mean and deviation of its latents, on Ray workers.

    The same command again encodes the shards that are missing.
    """
    try:
        _encode_all(options, plain_console())
    except ValueError as error:
        click.echo(f"error: {without_password(str(error))}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo(f"\nStopped. Finished shards are kept; run the same command again to go on:\n  {command_line()}")
        sys.exit(130)


def _encode_all(options: dict[str, Any], console: Console) -> None:
    check_permanent(options)
    vae = Path(options["vae"]).expanduser().absolute()
    info = LatentInfo(
        vae_sha256=vae_sha256(vae),
        scale=float(load_vae(vae / VAE_CONFIG, vae / VAE_WEIGHTS).config.scaling_factor),
        data=resolve(options["data"], wanted=wanted_from(options, image_size=options["image_size"]), flips=False),
        image_size=options["image_size"],
    )
    say_notes(console, [info.data])
    store = Store(options["out"])
    store.check_writable()
    data = load_dataset(info.data, "pool")
    if data.scale is not None:
        raise DataError(f"{options['data']} holds latents already; name images")
    shards = plan_shards(torch.cat(list(rows_in_mixed_order(data, options["shard_images"]))), options["shard_images"])
    with working(store, Path(sys.argv[0]).name) as leases:  # another one that writes here is waited for
        if leases.wait_for("latents", partial(say_waiting, console)):
            console.print("it has ended; going on")
        _encode_missing(options, vae, info, store, shards, console)
    console.print(f"to train on them: --dataset parquet:{store.location} --vae {vae}", soft_wrap=True)


def _encode_missing(
    options: dict[str, Any], vae: Path, info: LatentInfo, store: Store, shards: dict[str, torch.Tensor], console: Console
) -> None:
    done = finished_shards(store, shards, info, options["flip"])
    missing = {name: rows for name, rows in shards.items() if name not in done}
    console.print(f"{sum(map(len, shards.values())):,} images in {len(shards)} shards, {len(missing)} to encode")
    started = time.monotonic()
    unread, number = set[str](), 0
    shown = (TextColumn("encoding"), BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    with Progress(*shown, console=console) as progress:
        bar = progress.add_task("", total=sum(map(len, missing.values())))
        for encoded, unreadable in encode_shards(options, vae, info, store, missing):
            number += encoded
            progress.update(bar, advance=encoded)
            unread.update(unreadable)
    if unread:
        what = f"{counted(len(unread), 'image')} cannot be read; the next one of the class takes its place"
        console.print(f"{what}: {', '.join(sorted(unread))}")
    written = sum(entry.size for entry in store.filesystem.get_file_info([f"{store.root}/{name}" for name in shards]))
    console.print(
        f"{number:,} images encoded in {time.monotonic() - started:.0f} s; {written:,} bytes in {store.location}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
