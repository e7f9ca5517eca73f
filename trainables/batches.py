"""What a training step sees: images, labels, timesteps, noise and weights of the global batch, drawn from (seed, step) alone.

Step s of a run draws from the streams (seed, "train", s) and (seed, "source", s): a resumed run, or one with another number
of workers, sees the same data.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn

from fine_core.data import ImageSet
from fine_core.diffusion import NUM_TIMESTEPS
from fine_core.randomness import stream_generator
from fine_core.retention import draw_timesteps
from trainables.spec import TrainingSpec


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one step (N, ...). The step's loss is the sum of weights times the samples' losses.

    `taught`: samples that learn from the teacher's output instead of the noise; None if there are none.
    """

    images: Tensor
    labels: Tensor
    t: Tensor
    noise: Tensor
    weights: Tensor
    taught: Tensor | None = None

    def share(self, rank: int, num_workers: int) -> Batch:
        """The part of one of `num_workers` equal workers, weighted so that the workers' mean loss is the batch's loss."""
        size = len(self.labels) // num_workers
        part = {f.name: getattr(self, f.name) for f in fields(self)}
        part = {name: None if t is None else t[rank * size : (rank + 1) * size] for name, t in part.items()}
        return Batch(**{**part, "weights": part["weights"] * num_workers})


class BatchSource(Protocol):
    """Makes the batch of any step."""

    teacher: nn.Module | None

    def batch(self, step: int) -> Batch: ...


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


def uniform_probabilities() -> Tensor:
    return torch.full((NUM_TIMESTEPS,), 1 / NUM_TIMESTEPS, dtype=torch.float64)


class DenoisingBatches:
    """Images of one dataset with dropped labels; timesteps from `probabilities` (T,), losses weighted by `weights` (T,)."""

    teacher: nn.Module | None = None

    def __init__(
        self,
        data: ImageSet,
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
        self.order = BatchOrder(len(data), self.batch_size, seed, device)
        self.probabilities = (uniform_probabilities() if probabilities is None else probabilities).to(device)
        self.weights = torch.ones(NUM_TIMESTEPS, device=device) if weights is None else weights.float().to(device)

    def batch(self, step: int) -> Batch:
        rows = self.order.rows(step)
        generator = stream_generator(self.seed, "train", step, device=self.device)
        uniform = torch.rand(self.batch_size, generator=generator, device=self.device)
        dropped = torch.rand(self.batch_size, generator=generator, device=self.device) < self.training.label_dropout
        t = draw_timesteps(self.probabilities, uniform)
        return Batch(
            images=self.data.images[rows],
            labels=self.data.labels[rows].masked_fill(dropped, self.null_label),
            t=t,
            noise=torch.randn((self.batch_size, *self.data.images.shape[1:]), generator=generator, device=self.device),
            weights=self.weights[t] / self.batch_size,
        )


@dataclass(frozen=True, kw_only=True)
class TaughtBatches:
    """Batches of which the first half follows a teacher's outputs, at `teacher_weight` times the weight of the other half."""

    denoising: DenoisingBatches
    teacher: nn.Module
    teacher_weight: float

    def batch(self, step: int) -> Batch:
        batch = self.denoising.batch(step)
        size = len(batch.t)
        taught = torch.arange(size, device=batch.t.device) < size // 2
        number = taught.sum()
        weights = torch.where(taught, self.teacher_weight / number.clamp_min(1), 1.0 / (size - number))
        return replace(batch, taught=taught, weights=weights.float())


@dataclass(kw_only=True)
class RehearsingBatches:
    """Batches of target images, and beside them images under the null label at timesteps of the retention schedule.

    The second part comes from the knowledge bank and is denoised or, with a teacher, from the target and follows the
    teacher. Its mean loss counts `retention_weight` times (arXiv 2406.00773, equations 4 to 6, and the released code).
    """

    target: DenoisingBatches
    rehearsed: ImageSet
    rehearsed_per_batch: int
    probabilities: Tensor
    weights: Tensor
    retention_weight: float
    teacher: nn.Module | None = None
    order: BatchOrder = field(init=False)

    def __post_init__(self) -> None:
        device = self.target.device
        self.rehearsed = self.rehearsed.to(device)
        self.probabilities, self.weights = self.probabilities.to(device), self.weights.float().to(device)
        size, seed = self.rehearsed_per_batch, self.target.seed
        self.order = BatchOrder(len(self.rehearsed), size, seed, device, stream="source-epoch")

    def batch(self, step: int) -> Batch:
        target, size = self.target.batch(step), self.rehearsed_per_batch
        device = self.target.device
        generator = stream_generator(self.target.seed, "source", step, device=device)
        t = draw_timesteps(self.probabilities, torch.rand(size, generator=generator, device=device))
        images = self.rehearsed.images[self.order.rows(step)]
        taught = torch.zeros(len(target.t) + size, dtype=torch.bool, device=device)
        taught[len(target.t) :] = True
        return Batch(
            images=torch.cat([target.images, images]),
            labels=torch.cat([target.labels, torch.full_like(t, self.target.null_label)]),
            t=torch.cat([target.t, t]),
            noise=torch.cat([target.noise, torch.randn(images.shape, generator=generator, device=device)]),
            weights=torch.cat([target.weights, self.retention_weight * self.weights[t] / size]),
            taught=None if self.teacher is None else taught,
        )
