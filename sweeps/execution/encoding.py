"""Shards of latents on Ray workers: which there are, which are missing, and encoding those."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from pyarrow import fs
from ray.util import ActorPool
from torch import Tensor

from fine_core.data.latents import VAE_CONFIG, VAE_WEIGHTS, encode, load_vae, vae_sha256, write_latents
from fine_core.data.readers.parquet import latents_of_file
from fine_core.data.registry import load_dataset
from fine_core.data.source import DataError, LatentInfo
from sweeps.execution.cluster import connect_cluster, leave_cluster
from trainables.failures import last_line
from trainables.specs.base import check
from trainables.storage.store import Store


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


def plan_shards(order: Tensor, shard_images: int) -> dict[str, Tensor]:
    """Rows of each file, by its name, which says which part of the order it is."""
    total, shards = len(order), {}
    for start in range(0, total, shard_images):
        end = min(start + shard_images, total)
        shards[f"part-{start:08}-{end:08}-of-{total:08}.parquet"] = order[start:end]
    return shards


def finished_shards(store: Store, shards: dict[str, Tensor], info: LatentInfo, flips: bool) -> set[str]:
    """Names of the shards that are there. Raises DataError if anything else is."""
    entries = store.filesystem.get_file_info(fs.FileSelector(store.root))
    found = {entry.base_name: entry.path for entry in entries if entry.base_name.endswith(".parquet")}
    for name, path in found.items():
        shape, made = latents_of_file(store.filesystem, path)
        if name not in shards or made != info or shape[0] != 1 + flips:
            raise DataError(f"{path} is of other images, another VAE, other flips or shards; name another --out")
    return set(found)


def encode_shards(
    options: dict[str, Any], vae: Path, info: LatentInfo, store: Store, missing: dict[str, Tensor]
) -> Iterator[tuple[int, list[str]]]:
    """Encode the missing shards on Ray workers; a worker that dies is started again with its shard."""
    if not missing:
        return
    connect_cluster()
    try:
        gpus, resources = options["gpus_per_worker"], ray.cluster_resources()
        slots = int(min(resources.get("CPU", 0), resources.get("GPU", 0) / gpus if gpus else math.inf))
        check(slots > 0, f"the cluster has no room for a worker with 1 CPU and {gpus:g} GPUs; see --gpus-per-worker")
        workers = min(options["workers"] or slots, slots, len(missing))
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=2, max_task_retries=2)(Encoder)
        arguments = (str(vae), info, store.location, options["batch_size"], options["flip"])
        pool = ActorPool([remote.remote(*arguments) for _ in range(workers)])
        yield from pool.map_unordered(lambda actor, shard: actor.encode.remote(*shard), list(missing.items()))
    except ray.exceptions.RayTaskError as error:
        raise DataError(str(error.cause)) from error
    except ray.exceptions.RayActorError as error:  # it could not start, or died again and again
        raise DataError(f"a worker died: {last_line(str(error))}") from error
    finally:
        leave_cluster()
