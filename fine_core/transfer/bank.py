"""The knowledge bank of Diff-Tuning: images sampled from the pre-trained model, in one Parquet file with their protocol.

arXiv 2406.00773, section 3.2. Labels are drawn uniformly for sampling; in training the images get the null label.
"""

from __future__ import annotations

import json
import os

import numpy as np
import torch
from torch import Tensor

from fine_core.checkpoints.native import CheckpointError
from fine_core.data.source import ImageSet
from fine_core.randomness import stream_generator

METADATA_KEY = b"fine-sweeps"
COLUMN = "image"


def bank_labels(num_images: int, num_classes: int, *, seed: int) -> Tensor:
    """Uniform labels (num_images,) to sample the bank with."""
    return torch.randint(num_classes, (num_images,), generator=stream_generator(seed, "bank-labels"))


def save_bank(path: str | os.PathLike, images: Tensor, *, protocol: dict) -> None:
    """Write images (N, C, H, H), uint8, or latents, float16, and their protocol. Raises ValueError for other types."""
    import pyarrow as pa
    from pyarrow import parquet

    if images.dtype not in (torch.uint8, torch.float16):
        raise ValueError(f"a bank holds uint8 images or float16 latents, not {images.dtype}")
    rows = images.cpu().numpy()
    values = pa.array(rows.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(values, int(np.prod(rows.shape[1:])))
    header = {"protocol": protocol, "shape": list(rows.shape[1:])}
    schema = pa.schema([(COLUMN, column.type)], metadata={METADATA_KEY: json.dumps(header, sort_keys=True).encode()})
    parquet.write_table(pa.Table.from_arrays([column], schema=schema), path, compression="zstd")


def load_bank(path: str | os.PathLike, *, null_label: int) -> tuple[ImageSet, dict]:
    """The bank's images in [-1, 1] (latents as they are), all with the null label, and their protocol.

    Raises CheckpointError if the file is damaged or not a bank.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        header = json.loads(table.schema.metadata[METADATA_KEY])
        values = table[COLUMN].combine_chunks().flatten().to_numpy()
    except (pa.ArrowException, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a readable knowledge bank: {error}") from error
    images = torch.from_numpy(values.reshape(-1, *header["shape"]).copy())
    images = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()
    return ImageSet(images=images, labels=torch.full((len(images),), null_label)), header["protocol"]
