"""In which order the rows of a set are seen: drawn from the seed alone, every row once per epoch."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fine_core.data.source import LANES, ImageSource
from fine_core.randomness import stream_generator


class BatchOrder:
    """Rows of each global batch: epochs in orders drawn from the seed, every row once per epoch."""

    def __init__(
        self, num_rows: int, batch_size: int, seed: int, device: torch.device | str = "cpu", stream: str = "epoch"
    ) -> None:
        self.num_rows, self.batch_size, self.seed, self.device, self.stream = num_rows, batch_size, seed, device, stream
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def _draw_epoch(self, epoch: int) -> Tensor:
        order = torch.randperm(self.num_rows, generator=stream_generator(self.seed, self.stream, epoch))
        return order.to(self.device)  # once per epoch: a copy in every step would make the device wait

    def rows(self, step: int) -> Tensor:
        first = step * self.batch_size
        last = first + self.batch_size - 1
        epochs = range(first // self.num_rows, last // self.num_rows + 1)
        orders = torch.cat([self._epoch(epoch) for epoch in epochs])
        start = first - epochs[0] * self.num_rows
        return orders[start : start + self.batch_size]


class GroupedOrder:
    """Rows of each global batch of a set that is read in groups of rows, of which few may be held at a time.

    An epoch concatenates all groups in random order, each with its rows in random order, and splits the sequence into LANES
    equal parts. Samples are taken from the parts in turn, and a batch holds them part by part. So a batch touches about one
    group per part, and workers that share a batch read different groups as long as there are no more workers than parts.
    """

    def __init__(self, group_sizes: Tensor, batch_size: int, seed: int, stream: str = "epoch") -> None:
        self.group_sizes, self.batch_size, self.seed, self.stream = group_sizes, batch_size, seed, stream
        self.starts = torch.cat([torch.zeros(1, dtype=torch.long), group_sizes.cumsum(0)])
        self.num_rows = int(self.starts[-1])
        self.borders = [lane * self.num_rows // LANES for lane in range(LANES + 1)]
        self._epoch = lru_cache(maxsize=2 * LANES)(self._draw_epoch)
        self._within = lru_cache(maxsize=4 * LANES)(self._draw_within)

    def _draw_epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The groups in this epoch's order, and where each ends in it."""
        order = torch.randperm(len(self.group_sizes), generator=stream_generator(self.seed, self.stream, epoch))
        return order, self.group_sizes[order].cumsum(0)

    def _draw_within(self, epoch: int, group: int) -> Tensor:
        generator = stream_generator(self.seed, f"{self.stream}-group-{group}", epoch)
        return torch.randperm(int(self.group_sizes[group]), generator=generator) + self.starts[group]

    def rows(self, step: int) -> Tensor:
        samples = range(step * self.batch_size, (step + 1) * self.batch_size)
        found = []
        for sample in sorted(samples, key=lambda sample: sample % LANES):
            lane, place = sample % LANES, sample // LANES
            start, length = self.borders[lane], self.borders[lane + 1] - self.borders[lane]
            found.append(self._row(place // length, start + place % length))
        return torch.stack(found)

    def _row(self, epoch: int, position: int) -> Tensor:
        order, ends = self._epoch(epoch)
        index = int(torch.searchsorted(ends, position, right=True))
        before = int(ends[index - 1]) if index else 0
        return self._within(epoch, int(order[index]))[position - before]


def order_of(data: ImageSource, batch_size: int, seed: int, *, stream: str = "epoch") -> BatchOrder | GroupedOrder:
    """The order that suits a set."""
    if data.group_sizes is None or len(data) < LANES:
        return BatchOrder(len(data), batch_size, seed, data.device, stream)
    return GroupedOrder(data.group_sizes, batch_size, seed, stream)
