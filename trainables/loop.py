"""The one training loop: phases of steps over a recipe's models, the same in every runner and after every resume.

Step s of a run draws its batch, timesteps, noise and label drops for the *global* batch from the stream (seed, "train", s),
and each worker takes its share: a resumed run, or one with another number of workers, sees the same data.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fine_core.data import ImageSet
from fine_core.diffusion import NUM_TIMESTEPS, Diffusion
from fine_core.randomness import stream_generator
from trainables.context import RunContext
from trainables.spec import TrainingSpec
from trainables.store import PROGRESS_FILE, STATE_FILE

LOG_EVERY_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training with its own trainable parameters and learning rate."""

    name: str
    steps: int
    lr: float


class Recipe(Protocol):
    """What is trained: one model per phase, each built from the one before."""

    phases: tuple[Phase, ...]
    skips_parameters: bool  # whether a step may leave trainable parameters without gradient, on all workers alike

    def model_for(self, phase: int, previous: nn.Module | None) -> nn.Module:
        """The model of a phase, trainable parameters marked. What is frozen must not depend on earlier training."""

    def forward_options(self, step: int) -> dict[str, Any]:
        """Keyword arguments of the model's forward pass in this step."""


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""


@dataclass(kw_only=True)
class Progress:
    """What a run remembers besides its tensors."""

    step: int = 0
    phase: int = 0
    train_s: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


class BatchOrder:
    """Rows of each global batch: epochs in orders drawn from the seed, every row once per epoch."""

    def __init__(self, num_rows: int, batch_size: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.num_rows, self.batch_size, self.seed, self.device = num_rows, batch_size, seed, device
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def _draw_epoch(self, epoch: int) -> Tensor:
        order = torch.randperm(self.num_rows, generator=stream_generator(self.seed, "epoch", epoch))
        return order.to(self.device)  # once per epoch: a copy in every step would make the device wait

    def rows(self, step: int) -> Tensor:
        first = step * self.batch_size
        last = first + self.batch_size - 1
        epochs = range(first // self.num_rows, last // self.num_rows + 1)
        orders = torch.cat([self._epoch(epoch) for epoch in epochs])
        start = first - epochs[0] * self.num_rows
        return orders[start : start + self.batch_size]


class PhaseTrainer:
    """Optimizer and EMA over the trainable parameters of one phase's model."""

    def __init__(
        self, model: nn.Module, phase: Phase, training: TrainingSpec, run: RunContext, *, skips_parameters: bool
    ) -> None:
        self.model, self.phase, self.training = model, phase, training
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters = list(self.trainable.values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=phase.lr, weight_decay=training.weight_decay, fused=True)
        self.ema = [p.detach().clone() for p in self.parameters]
        self.forward = model
        if run.num_workers > 1:
            self.forward = DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=skips_parameters)

    def step(self, loss: Tensor, step_in_phase: int) -> None:
        warmup = min(1.0, (step_in_phase + 1) / max(1, self.training.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.phase.lr * warmup
        loss.backward()
        if self.training.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.training.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # The average starts short, or the first weights would weigh on it for as long as the run lasts.
        decay = min(self.training.ema_decay, (1 + step_in_phase) / (10 + step_in_phase))
        get_ema_multi_avg_fn(decay)(self.ema, self.parameters, None)

    @torch.no_grad()
    def finish(self) -> nn.Module:
        """The phase's model with its averaged weights."""
        for parameter, average in zip(self.parameters, self.ema, strict=True):
            parameter.copy_(average)
        return self.model

    def state(self) -> dict[str, Any]:
        return {
            "trainable": {name: p.detach() for name, p in self.trainable.items()},
            "ema": dict(zip(self.trainable, self.ema, strict=True)),
            "optimizer": self.optimizer.state_dict(),
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        for (name, parameter), average in zip(self.trainable.items(), self.ema, strict=True):
            parameter.copy_(state["trainable"][name])
            average.copy_(state["ema"][name])
        self.optimizer.load_state_dict(state["optimizer"])


def train(
    recipe: Recipe,
    *,
    data: ImageSet,
    num_classes: int,
    training: TrainingSpec,
    seed: int,
    run: RunContext,
    checkpoint_every_steps: int,
) -> tuple[nn.Module, Progress]:
    """Run all phases from the latest checkpoint on; returns the last model with averaged weights.

    Raises TrainingDiverged on a non-finite loss, ValueError if the batch does not divide among the workers.
    """
    if training.batch_size % run.num_workers:
        raise ValueError(f"batch_size {training.batch_size} does not divide among {run.num_workers} workers")
    share = slice(run.rank * training.batch_size // run.num_workers, (run.rank + 1) * training.batch_size // run.num_workers)
    data = data.to(run.device)
    diffusion = Diffusion().to(run.device)
    order = BatchOrder(len(data), training.batch_size, seed, run.device)
    progress, state = _restore(run)
    total_steps = sum(phase.steps for phase in recipe.phases)

    def batch_loss(forward: nn.Module, step: int) -> Tensor:
        rows = order.rows(step)
        generator = stream_generator(seed, "train", step, device=run.device)
        size = training.batch_size
        t = torch.randint(NUM_TIMESTEPS, (size,), generator=generator, device=run.device)
        dropped = torch.rand(size, generator=generator, device=run.device) < training.label_dropout
        noise = torch.randn((size, *data.images.shape[1:]), generator=generator, device=run.device)
        labels = data.labels[rows].masked_fill(dropped, num_classes)
        options = recipe.forward_options(step)
        losses = diffusion.losses(
            lambda x, time, y: forward(x, time, y, **options),
            data.images[rows][share],
            t[share],
            labels[share],
            noise[share],
        )
        return losses.mean()

    model: nn.Module | None = None
    first_step = 0
    for index, phase in enumerate(recipe.phases):
        model = recipe.model_for(index, model).to(run.device)
        end = first_step + phase.steps
        if index < progress.phase or phase.steps == 0:
            first_step = end
            continue
        trainer = PhaseTrainer(model, phase, training, run, skips_parameters=recipe.skips_parameters)
        if state is not None:
            trainer.load_state(state)
            state = None
        progress.phase = index
        losses: list[Tensor] = []  # stay on the device until the next report
        started = time.perf_counter()
        reported_step = progress.step
        for step in range(progress.step, end):
            loss = batch_loss(trainer.forward, step)
            trainer.step(loss, step - first_step)
            losses.append(loss.detach())
            progress.step = step + 1
            if progress.step % checkpoint_every_steps == 0 or progress.step == end:
                new_entries = _mean_losses(progress.step, run.mean(torch.stack(losses)).tolist())
                progress.history += new_entries
                elapsed_s = time.perf_counter() - started
                progress.train_s += elapsed_s
                speed = (progress.step - reported_step) / elapsed_s
                progress.history[-1]["train/steps_per_s"] = speed
                _report(run, trainer, progress, total_steps, new_entries)
                losses, reported_step, started = [], progress.step, time.perf_counter()
        model = trainer.finish()
        first_step = end
    return model, progress


def _mean_losses(step: int, losses: list[float]) -> list[dict[str, float]]:
    """The mean loss of every LOG_EVERY_STEPS steps of those that end at `step`."""
    entries = []
    for start in range(0, len(losses), LOG_EVERY_STEPS):
        chunk = losses[start : start + LOG_EVERY_STEPS]
        mean, chunk_end = sum(chunk) / len(chunk), step - len(losses) + start + len(chunk)
        if not math.isfinite(mean):
            raise TrainingDiverged(f"the loss is {mean} by step {chunk_end}; try a lower learning rate")
        entries.append({"step": chunk_end, "train/loss": mean})
    return entries


def _report(
    run: RunContext, trainer: PhaseTrainer, progress: Progress, total_steps: int, new_entries: list[dict[str, float]]
) -> None:
    metrics = {"step": progress.step, "total_steps": total_steps, "phase": trainer.phase.name, "history": new_entries}
    if run.rank != 0:
        run.report(metrics, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"progress": vars(progress), **trainer.state()}, Path(folder) / STATE_FILE)
        state_bytes = (Path(folder) / STATE_FILE).stat().st_size
        (Path(folder) / PROGRESS_FILE).write_text(json.dumps({"step": progress.step, "state_bytes": state_bytes}))
        run.report(metrics, Path(folder))


def _restore(run: RunContext) -> tuple[Progress, dict[str, Any] | None]:
    with run.restore() as folder:
        if folder is None:
            return Progress(), None
        state = torch.load(folder / STATE_FILE, map_location=run.device, weights_only=True)
    return Progress(**state.pop("progress")), state
