"""Encode images once by the VAE of a latent diffusion model: sharded Parquet that sweeps take as `--dataset parquet:OUT`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from pyarrow import fs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from fine_core.data import load_dataset, rows_in_mixed_order
from fine_core.data_by_path import resolve
from fine_core.image_files import CorruptImages
from fine_core.image_set import DataError, LatentInfo
from fine_core.latents import VAE_CONFIG, VAE_WEIGHTS, encode, load_vae, vae_sha256, write_latents
from fine_core.parquet_images import latents_of_file
from sweeps.monitor import counted
from sweeps.options import OneLineErrors, command_line
from sweeps.running import connect_cluster
from trainables.spec import check
from trainables.store import Store


class Encoder:
    """One worker: the VAE in memory, and a shard at a time."""

    def __init__(self, vae: str, info: LatentInfo, location: str, batch_size: int, flips: bool) -> None:
        torch.set_num_threads(1)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        check(vae_sha256(vae) == info.vae_sha256, f"{vae} is another VAE on this node")
        self.vae = load_vae(Path(vae) / VAE_CONFIG, Path(vae) / VAE_WEIGHTS).to(self.device)
        self.info, self.store, self.batch_size, self.flips = info, Store(location), batch_size, flips
        self.data = load_dataset(info.data, "pool").to(self.device)

    def encode(self, name: str, rows: Tensor) -> tuple[int, list[str]]:
        """Write one shard. Returns its number of images, and the names of those that this worker could not read so far."""
        moments = [encode(self.vae, self.data.take(part), flips=self.flips) for part in rows.split(self.batch_size)]
        labels = self.data.labels[rows]
        write_latents(self.store.filesystem, f"{self.store.root}/{name}", torch.cat(moments), labels, self.info)
        return len(rows), self.data.corrupt


@click.command(
    cls=OneLineErrors,
    epilog="Example: python sweeps/encode_latents.py --vae sd-vae-ft-ema --data imagefolder:~/pets --out ~/pets-latents",
)
@click.option("--vae", required=True, help="Folder of a diffusers AutoencoderKL.")
@click.option("--data", required=True, help="Images: imagefolder:PATH or parquet:PATH.")
@click.option("--out", required=True, help="Folder or URI to write.")
@click.option(
    "--image-size", type=click.IntRange(min=1), default=256, show_default=True, help="Side that images are cropped to."
)
@click.option("--flip/--no-flip", default=True, show_default=True, help="Encode the mirror images too.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Images encoded at once.")
@click.option("--shard-images", type=click.IntRange(min=1), default=1024, show_default=True, help="Images of a file.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: as many as the cluster holds]")
@click.option("--gpus-per-worker", type=click.FloatRange(min=0), default=0.0, show_default=True, help="May be a fraction.")
def main(**options) -> None:
    """Encode every image, and its mirror image, to the mean and deviation of its latents, on Ray workers.

    The same command again encodes the shards that are missing.
    """
    try:
        _encode_all(options, Console())
    except ValueError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo(f"\nStopped. Finished shards are kept; run the same command again to go on:\n  {command_line()}")
        sys.exit(130)


def _encode_all(options: dict[str, Any], console: Console) -> None:
    vae = Path(options["vae"]).expanduser().absolute()
    info = LatentInfo(
        vae_sha256=vae_sha256(vae),
        scale=float(load_vae(vae / VAE_CONFIG, vae / VAE_WEIGHTS).config.scaling_factor),
        data=resolve(options["data"], image_size=options["image_size"], flips=False),
        image_size=options["image_size"],
    )
    store = Store(options["out"])
    store.check_writable()
    data = load_dataset(info.data, "pool")
    if data.scale is not None:
        raise DataError(f"{options['data']} holds latents already; name images")
    shards = _shards(torch.cat(list(rows_in_mixed_order(data, options["shard_images"]))), options["shard_images"])
    done = _finished_shards(store, shards, info, options["flip"])
    missing = {name: rows for name, rows in shards.items() if name not in done}
    console.print(f"{len(data):,} images in {len(shards)} shards, {len(missing)} to encode")
    started = time.monotonic()
    corrupt, number = CorruptImages(len(data)), 0
    columns = (TextColumn("encoding"), BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=sum(map(len, missing.values())))
        for encoded, unreadable in _encoded(options, vae, info, store, missing):
            number += encoded
            progress.update(bar, advance=encoded)
            for name in unreadable:
                corrupt.add(name, name)
    if corrupt.names:
        what = f"{counted(len(corrupt.names), 'image')} cannot be read; the next one takes its place"
        console.print(f"{what}: {', '.join(corrupt.names)}", highlight=False)
    written = sum(entry.size for entry in store.filesystem.get_file_info([f"{store.root}/{name}" for name in shards]))
    console.print(
        f"{number:,} images encoded in {time.monotonic() - started:.0f} s; {written:,} bytes in {store.location}",
        soft_wrap=True,
    )
    console.print(f"to train on them: --dataset parquet:{store.location} --vae {vae}", soft_wrap=True, highlight=False)


def _shards(order: Tensor, shard_images: int) -> dict[str, Tensor]:
    """Rows of each file, by its name."""
    parts = order.split(shard_images)
    return {f"part-{index:05}-of-{len(parts):05}.parquet": rows for index, rows in enumerate(parts)}


def _finished_shards(store: Store, shards: dict[str, Tensor], info: LatentInfo, flips: bool) -> set[str]:
    """Names of the shards that are there. Raises DataError if anything else is."""
    entries = store.filesystem.get_file_info(fs.FileSelector(store.root))
    found = {entry.base_name: entry.path for entry in entries if entry.base_name.endswith(".parquet")}
    for name, path in found.items():
        shape, made = latents_of_file(store.filesystem, path)
        if name not in shards or made != info or shape[0] != 1 + flips:
            raise DataError(f"{path} is of other images, another VAE, other flips or shards; name another --out")
    return set(found)


def _encoded(
    options: dict[str, Any], vae: Path, info: LatentInfo, store: Store, missing: dict[str, Tensor]
) -> Iterator[tuple[int, list[str]]]:
    """Encode the missing shards on Ray workers; a worker that dies is started again with its shard."""
    if not missing:
        return
    import ray  # after sweeps.running, which sets Ray's environment
    from ray.util import ActorPool

    connect_cluster()
    try:
        gpus = options["gpus_per_worker"]
        resources = ray.cluster_resources()
        slots = int(resources.get("GPU", 0) / gpus if gpus else resources.get("CPU", 1))
        workers = min(options["workers"] or max(1, slots), len(missing))
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=2, max_task_retries=2)(Encoder)
        arguments = (str(vae), info, store.location, options["batch_size"], options["flip"])
        pool = ActorPool([remote.remote(*arguments) for _ in range(workers)])
        yield from pool.map_unordered(lambda actor, shard: actor.encode.remote(*shard), list(missing.items()))
    except ray.exceptions.RayTaskError as error:
        raise DataError(str(error.cause)) from error
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
