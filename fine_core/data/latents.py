"""Latents of a local AutoencoderKL (diffusers): encoding images to Parquet, and decoding samples.

A row holds the posterior's mean and standard deviation in float16: of the image and, if flips are kept, of its mirror image.
The model's input is `scale` times a draw (0.18215 for Stable Diffusion's VAE, as in DiT, arXiv 2212.09748, section 4.1).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import torch
from pyarrow import fs, parquet
from torch import Tensor, nn

from fine_core.checkpoints.native import CheckpointError, check_is_no_pointer
from fine_core.data.pixels import to_uint8
from fine_core.data.readers.parquet import METADATA_KEY
from fine_core.data.source import LatentInfo
from fine_core.files import sha256_of

VAE_CONFIG, VAE_WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
ROWS_PER_GROUP = 256
DECODE_BATCH = 16


def vae_sha256(folder: str | os.PathLike) -> str:
    """One hash of a VAE's two files. Raises CheckpointError if one is missing."""
    digest = hashlib.sha256()
    folder = Path(folder)
    for name in (VAE_CONFIG, VAE_WEIGHTS):
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{folder} is no AutoencoderKL as diffusers saves it: it has no {name}{_remedy(folder)}")
        check_is_no_pointer(file)
        digest.update(sha256_of(file).encode())
    return digest.hexdigest()


def _remedy(folder: Path) -> str:
    """What to do about a folder that holds a VAE in another way."""
    if (folder / "vae").is_dir():
        return f"; it is a pipeline, name its folder {folder / 'vae'}"
    others = sorted(file.name for file in folder.glob("*") if file.suffix in (".bin", ".safetensors"))
    if others:
        load = "AutoencoderKL.from_pretrained(FOLDER, use_safetensors=False)" if others[0].endswith(".bin") else "the folder"
        return f"; it has {others[0]}: save it again by diffusers, {load}.save_pretrained(OUT), and name OUT"
    return ""


def load_vae(config: str | os.PathLike, weights: str | os.PathLike) -> nn.Module:
    """The AutoencoderKL of two files, in eval mode and frozen. Raises CheckpointError if they do not fit together."""
    from diffusers import AutoencoderKL

    try:
        with tempfile.TemporaryDirectory() as folder:  # a folder, because then diffusers renames the keys of older versions
            for name, file in ((VAE_CONFIG, config), (VAE_WEIGHTS, weights)):
                (Path(folder) / name).symlink_to(Path(file).absolute())
            vae = AutoencoderKL.from_pretrained(folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False)
    except Exception as error:  # diffusers and safetensors raise exceptions of many types
        reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()
        raise CheckpointError(f"{config} and {weights} are no readable AutoencoderKL: {reason}") from error
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode(vae: nn.Module, images: Tensor, *, flips: bool) -> Tensor:
    """Moments (N, views, 2, C, h, h), float16, of images (N, 3, H, H) in [-1, 1]. Views: the image, its mirror image."""
    views = [images, images.flip(-1)] if flips else [images]
    posteriors = [vae.encode(view).latent_dist for view in views]
    moments = [torch.stack([posterior.mean, posterior.std], dim=1) for posterior in posteriors]
    return torch.stack(moments, dim=1).half().cpu()


@torch.no_grad()
def decode(vae: nn.Module, latents: Tensor, *, scale: float) -> Tensor:
    """uint8 images (N, 3, H, H) from sampled latents (N, C, h, h)."""
    return torch.cat([to_uint8(vae.decode(batch / scale).sample) for batch in latents.split(DECODE_BATCH)])


def write_latents(filesystem: fs.FileSystem, path: str, moments: Tensor, labels: Tensor, info: LatentInfo) -> None:
    """Write moments (N, views, 2, C, h, h) and labels (N,) as one Parquet file. The write is atomic."""
    rows = moments.numpy().reshape(len(moments), -1)
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    header = {"shape": list(moments.shape[1:]), "latents": asdict(info)}
    fields = [("latent", column.type), ("label", pa.int64())]
    schema = pa.schema(fields, metadata={METADATA_KEY: json.dumps(header, sort_keys=True).encode()})
    table = pa.Table.from_arrays([column, pa.array(labels.numpy())], schema=schema)
    partial = f"{path}.partial"
    with filesystem.open_output_stream(partial) as stream:
        parquet.write_table(table, stream, compression="zstd", row_group_size=ROWS_PER_GROUP)
    filesystem.move(partial, path)
