"""One worker's part of every batch; where images come from files, the next ones are read while the model trains."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from trainables.training.batches import Batch, BatchSource


def prefetch(batches: BatchSource, steps: range, *, rank: int, num_workers: int) -> Iterator[tuple[int, Batch, Tensor]]:
    """Each step with the part of its batch that is `rank`'s among `num_workers`, and the images of that part."""

    def make(step: int) -> tuple[Batch, Tensor]:
        batch = batches.batch(step).share(rank, num_workers)
        return batch, batch.images

    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = None
        for step in steps:
            batch, images = make(step) if ahead is None else ahead.result()
            ahead = None if batch.is_in_memory or step + 1 == steps.stop else pool.submit(make, step + 1)
            yield step, batch, images
