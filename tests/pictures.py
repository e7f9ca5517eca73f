"""Small sets of images and latents on disk, and what scores them."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from diffusers import AutoencoderKL
from PIL import Image
from pyarrow import parquet


def picture(seed: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def encoded(seed: int, size: tuple[int, int] = (20, 16)) -> bytes:
    stream = io.BytesIO()
    picture(seed, size).save(stream, "PNG")
    return stream.getvalue()


def image_folder(root: Path, *, classes: int = 2, per_class: int = 6) -> Path:
    for label in range(classes):
        (root / f"class-{label}").mkdir(parents=True)
        for i in range(per_class):
            picture(100 * label + i).save(root / f"class-{label}" / f"{i}.png")
    return root


def image_shards(root: Path, *, rows_per_shard: int = 40, shards: int = 3, group: int = 10, classes: int = 4) -> Path:
    root.mkdir()
    for shard in range(shards):
        seeds = range(shard * rows_per_shard, (shard + 1) * rows_per_shard)
        columns = {"image": [encoded(seed) for seed in seeds], "label": [seed % classes for seed in seeds]}
        parquet.write_table(pa.table(columns), root / f"{shard:02}.parquet", row_group_size=group)
    return root


def latent_shard(file: Path, values: np.ndarray, labels, *, group: int = 10, **header) -> Path:
    """Moments (N, views, 2, C, h, h)."""
    flat = values.astype(np.float16).reshape(len(values), -1)
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    made = {"vae_sha256": "0" * 64, "scale": 0.18215, "data": "imagefolder:/x[16px,00000000]", "image_size": 16}
    content = {"shape": list(values.shape[1:]), "latents": made} | header
    schema = pa.schema([("latent", column.type), ("label", pa.int64())], metadata={"fine-sweeps": json.dumps(content)})
    table = pa.Table.from_arrays([column, pa.array(labels, pa.int64())], schema=schema)
    parquet.write_table(table, file, row_group_size=group, compression="none", use_dictionary=False)
    return file


class Means(torch.nn.Module):
    """Features that anyone can compute: mean and deviation of each channel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.float().flatten(2) / 255
        return torch.cat([pixels.mean(dim=2), pixels.std(dim=2)], dim=1)


def extractor_file(root: Path) -> Path:
    """`means.pt`, a TorchScript extractor."""
    torch.jit.script(Means()).save(root / "means.pt")
    return root / "means.pt"


def vae_folder(root: Path) -> Path:
    """`vae`, a small AutoencoderKL with random weights, which halves the sides of images."""
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        latent_channels=4,
        sample_size=16,
    ).save_pretrained(root / "vae")
    return root / "vae"
