"""A Parquet set that is larger than the memory that a process may take is read through to its end."""

import subprocess
import sys

import numpy as np
import pytest

from tests.pictures import latent_shard

LIMIT_BYTES = 200 * 2**20  # beside what the process has when it starts to read

READ_AN_EPOCH = """
import resource, sys
import torch
from pathlib import Path
from fine_core.data.registry import load_dataset
from fine_core.data.readers.base import Wanted
from fine_core.data.by_path import resolve
from trainables.training.batches import DenoisingBatches
from trainables.training.prefetch import prefetch
from trainables.specs.base import TrainingSpec

torch.set_num_threads(1)
def memory(field):
    return int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1]) * 1024

name = resolve("parquet:" + sys.argv[1], wanted=Wanted(image_size=8), flips=False)
data = load_dataset(name, "train")
batches = DenoisingBatches(data, TrainingSpec(steps=1, batch_size=64), null_label=4, seed=0, device=torch.device("cpu"))
next(iter(prefetch(batches, range(1), rank=0, num_workers=1)))  # what is imported late is there now
limit = memory("VmData") + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
before, total = memory("VmRSS"), 0.0
steps = len(data) // 64
for step, batch, images in prefetch(batches, range(steps), rank=0, num_workers=1):
    total += images.sum().item()
if sys.argv[3] == "hold":
    held = [data.take(rows) for rows in torch.arange(len(data)).split(64)]
print(len(data), steps, memory("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """512 MB of latents in row groups of 2 MB."""
    folder = tmp_path_factory.mktemp("large")
    values = np.ones((4096, 1, 2, 4, 32, 32), dtype=np.float16)
    for shard in range(8):
        latent_shard(folder / f"{shard}.parquet", values, np.arange(4096) % 4, group=128)
    assert sum(file.stat().st_size for file in folder.iterdir()) > 510 * 2**20
    return folder


def read(folder, mode: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", READ_AN_EPOCH, str(folder), str(LIMIT_BYTES), mode]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit on data segments")
def test_memory_stays_flat_over_an_epoch_of_a_set_larger_than_the_limit(large):
    result = read(large, "stream")
    assert result.returncode == 0, result.stderr[-2000:]
    rows, steps, growth_bytes = map(int, result.stdout.split())
    assert rows == 8 * 4096 and steps == 512
    assert growth_bytes < 100 * 2**20, f"grew by {growth_bytes:,} bytes"
    failed = read(large, "hold")
    assert failed.returncode != 0 and ("memory" in failed.stderr.lower() or "alloc" in failed.stderr.lower()), "the limit holds"
