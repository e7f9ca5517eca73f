"""Data of a training step: images, conditions, noise levels, noise and weights of the global batch, drawn from (seed, step).

Step s of a run draws from the streams (seed, "train", s) and (seed, "source", s): a resumed run, or one with another number
of workers, sees the same data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from fine_core.data.source import Augmentation, ImageSource
from fine_core.denoiser import LABEL, Conditions, rows_of
from fine_core.parameterizations.ranks import NUM_LEVELS, draw_ranks, levels_of
from fine_core.randomness import stream_generator
from trainables.specs.base import TrainingSpec
from trainables.training.order import BatchOrder, GroupedOrder, order_of


@dataclass(frozen=True, kw_only=True)
class ImageRows:
    """Images of a batch that have not been read yet: `rows` (n,) of a set."""

    data: ImageSource
    rows: Tensor
    augmentation: Augmentation | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, places: Tensor) -> ImageRows:
        """The images at the indices `places` (n,) of `rows`."""
        drawn = None if self.augmentation is None else self.augmentation.of(places.to(self.augmentation.flipped.device))
        return ImageRows(data=self.data, rows=self.rows[places.to(self.rows.device)], augmentation=drawn)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one step (N, ...). The step's loss is the sum of weights times the samples' losses.

    `level_weights` (N,) are those of the noise levels, which are part of a sample's loss (see `training_losses`).
    `image_rows`: where its images are, in the order of the samples. `conditions`: what the network is told, labels among it.
    `ranks`: places of the noise levels in the training distribution, in (0, 1). `distilled`: samples that learn from the
    teacher's output instead of the noise; None if there are none.
    """

    image_rows: tuple[ImageRows, ...]
    conditions: Conditions
    ranks: Tensor
    noise: Tensor
    weights: Tensor
    level_weights: Tensor
    distilled: Tensor | None = None

    def share(self, rank: int, num_workers: int) -> Batch:
        """The part of one of `num_workers` equal workers, weighted so that the workers' mean loss is the batch's loss.

        Every worker has its part of the target's, of the rehearsed and of the distilled samples, as far as they divide: a
        teacher's work is shared too.
        """
        if num_workers == 1:
            return self
        mine = self._places()[rank * len(self.ranks) // num_workers :][: len(self.ranks) // num_workers].sort().values
        rows, start = [], 0
        for image_rows in self.image_rows:
            within = (mine >= start) & (mine < start + len(image_rows))
            rows.append(image_rows.at(mine[within] - start))
            start += len(image_rows)
        part = mine.to(self.ranks.device)
        return Batch(
            image_rows=tuple(rows),
            conditions=rows_of(self.conditions, part),
            ranks=self.ranks[part],
            noise=self.noise[part],
            weights=self.weights[part] * num_workers,
            level_weights=self.level_weights[part],
            distilled=None if self.distilled is None else self.distilled[mine],
        )

    def micro_batches(self, size: int) -> Iterator[tuple[slice, Batch]]:
        """Slices of at most `size` samples, each with its own batch, whose `image_rows` are empty. The losses of these batches
        add up to the loss of the whole batch."""
        for first in range(0, len(self.ranks), size):
            part = slice(first, first + size)
            yield (
                part,
                Batch(
                    image_rows=(),
                    conditions=rows_of(self.conditions, part),
                    ranks=self.ranks[part],
                    noise=self.noise[part],
                    weights=self.weights[part],
                    level_weights=self.level_weights[part],
                    distilled=None if self.distilled is None else self.distilled[part],
                ),
            )

    def _places(self) -> Tensor:
        """Indices (N,) that interleave the kinds of samples: each contiguous n-th part holds an n-th of every kind."""
        kinds = torch.cat([torch.full((len(rows),), 2 * index) for index, rows in enumerate(self.image_rows)])
        if self.distilled is not None:
            kinds += self.distilled
        depths = torch.empty(len(kinds), dtype=torch.float64)
        for kind in kinds.unique():
            members = kinds == kind
            number = int(members.sum())
            depths[members] = (torch.arange(number, dtype=torch.float64) + 0.5) / number
        return depths.argsort(stable=True)

    @property
    def images(self) -> Tensor:
        """The images (N, C, H, H), read from where they are each time that this is asked for."""
        return torch.cat([part.data.take(part.rows, part.augmentation) for part in self.image_rows if len(part)])

    @property
    def is_in_memory(self) -> bool:
        return all(part.data.in_memory for part in self.image_rows)


class BatchSource(Protocol):
    """Makes the batch of any step."""

    teacher: nn.Module | None

    def batch(self, step: int) -> Batch: ...


def uniform_probabilities() -> Tensor:
    return torch.full((NUM_LEVELS,), 1 / NUM_LEVELS, dtype=torch.float64)


class DenoisingBatches:
    """Images of one dataset with dropped labels; levels drawn by `probabilities` (T,), losses weighted by `weights` (T,)."""

    teacher: nn.Module | None = None

    def __init__(
        self,
        data: ImageSource,
        training: TrainingSpec,
        *,
        null_label: int,
        seed: int,
        device: torch.device,
        batch_size: int | None = None,
        probabilities: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        self.data, self.training, self.null_label = data.to(device), training, null_label
        self.seed, self.device = seed, device
        self.batch_size = training.batch_size if batch_size is None else batch_size
        self.order = order_of(self.data, self.batch_size, seed)
        self.probabilities = (uniform_probabilities() if probabilities is None else probabilities).to(device)
        self.weights = torch.ones(NUM_LEVELS, device=device) if weights is None else weights.float().to(device)

    def batch(self, step: int) -> Batch:
        rows = self.order.rows(step)
        generator = stream_generator(self.seed, "train", step, device=self.device)
        uniform = torch.rand(self.batch_size, generator=generator, device=self.device)
        dropped = torch.rand(self.batch_size, generator=generator, device=self.device) < self.training.label_dropout
        ranks = draw_ranks(self.probabilities, uniform)
        labels = self.data.labels[rows].to(self.device).masked_fill(dropped, self.null_label)
        return Batch(
            image_rows=(image_rows(self.data, rows, self.seed, "augment", step, self.device),),
            conditions={LABEL: labels},
            ranks=ranks,
            noise=torch.randn((self.batch_size, *self.data.shape), generator=generator, device=self.device),
            weights=torch.full_like(ranks, 1 / self.batch_size, dtype=torch.float32),
            level_weights=self.weights[levels_of(ranks)],
        )


def image_rows(data: ImageSource, rows: Tensor, seed: int, stream: str, step: int, device: torch.device) -> ImageRows:
    """Rows of a set with the augmentation of this step, which has a stream of its own."""
    generator = stream_generator(seed, stream, step, device=device)
    return ImageRows(data=data, rows=rows, augmentation=data.draw_augmentation(len(rows), generator))


@dataclass(frozen=True, kw_only=True)
class DistillingBatches:
    """Batches of which the first half follows a teacher's outputs, at `teacher_weight` times the weight of the other half."""

    denoising: DenoisingBatches
    teacher: nn.Module
    teacher_weight: float

    def batch(self, step: int) -> Batch:
        batch = self.denoising.batch(step)
        size = len(batch.ranks)
        distilled, number = torch.arange(size) < size // 2, size // 2
        weights = torch.where(distilled, self.teacher_weight / max(1, number), 1.0 / (size - number))
        return replace(batch, distilled=distilled, weights=weights.float().to(batch.ranks.device))


@dataclass(kw_only=True)
class RehearsingBatches:
    """Batches of target images, and beside them images under the null label at levels of the retention schedule.

    The second part comes from the knowledge bank and is denoised or, with a teacher, from the target and follows the
    teacher. Its mean loss counts `retention_weight` times (arXiv 2406.00773, equations 4 to 6, and the released code).
    """

    target: DenoisingBatches
    rehearsed: ImageSource
    rehearsed_per_batch: int
    probabilities: Tensor
    weights: Tensor
    retention_weight: float
    teacher: nn.Module | None = None
    order: BatchOrder | GroupedOrder = field(init=False)

    def __post_init__(self) -> None:
        device = self.target.device
        self.rehearsed = self.rehearsed.to(device)
        self.probabilities, self.weights = self.probabilities.to(device), self.weights.float().to(device)
        self.order = order_of(self.rehearsed, self.rehearsed_per_batch, self.target.seed, stream="source-epoch")

    def batch(self, step: int) -> Batch:
        target, size = self.target.batch(step), self.rehearsed_per_batch
        device = self.target.device
        generator = stream_generator(self.target.seed, "source", step, device=device)
        ranks = draw_ranks(self.probabilities, torch.rand(size, generator=generator, device=device))
        rows = image_rows(self.rehearsed, self.order.rows(step), self.target.seed, "source-augment", step, device)
        noise = torch.randn((size, *self.rehearsed.shape), generator=generator, device=device)
        labels = target.conditions[LABEL]
        distilled = torch.arange(len(labels) + size) >= len(labels)
        return Batch(
            image_rows=(*target.image_rows, rows),
            conditions={LABEL: torch.cat([labels, labels.new_full((size,), self.target.null_label)])},
            ranks=torch.cat([target.ranks, ranks]),
            noise=torch.cat([target.noise, noise]),
            weights=torch.cat([target.weights, torch.full_like(target.weights[:1], self.retention_weight / size).expand(size)]),
            level_weights=torch.cat([target.level_weights, self.weights[levels_of(ranks)]]),
            distilled=None if self.teacher is None else distilled,
        )
