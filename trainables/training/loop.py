"""The training loop: phases of steps over the models of a recipe. It is the same in every runner and after every resume.

A step's batch depends on its number alone (see batches.py), and each worker takes its share of it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fine_core.denoiser import denoiser_of
from fine_core.evaluation.finite import check_finite_model
from fine_core.parameterizations import PARAMETERIZATIONS
from fine_core.parameterizations.losses import training_losses
from trainables.specs.base import TrainingSpec
from trainables.training.batches import Batch, BatchSource
from trainables.training.checkpoint import report_checkpoint, restore_checkpoint
from trainables.training.context import RunContext
from trainables.training.prefetch import prefetch

LOG_EVERY_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training with its own trainable parameters and learning rate."""

    name: str
    steps: int
    lr: float


class Recipe(Protocol):
    """What is trained: one model per phase, each built from the one before. A model's `config` is a `DiTConfig`."""

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
    """State of a run besides its tensors."""

    step: int = 0
    phase: int = 0
    train_s: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


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
        # EMA warm-up: a short horizon at first, so that the initial weights are forgotten.
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
    batches: BatchSource,
    training: TrainingSpec,
    run: RunContext,
    checkpoint_every_steps: int,
    until_step: int | None = None,
) -> tuple[nn.Module, Progress]:
    """Run all phases from the latest checkpoint on; returns the last model with averaged weights.

    With `until_step` the run stops there, checkpointed: without it, it goes on as if it had never stopped. Raises
    TrainingDiverged on a loss and NotFinite on weights that are not finite, ValueError if the batch does not divide among the
    workers.
    """
    if training.batch_size % run.num_workers:
        raise ValueError(f"batch_size {training.batch_size} does not divide among {run.num_workers} workers")
    teacher = None if batches.teacher is None else denoiser_of(batches.teacher)
    state = restore_checkpoint(run)
    if state is not None and until_step is not None and state["progress"]["step"] > until_step:
        state = None  # this stretch of the training is over; it can only be had again from the start
    progress = Progress() if state is None else Progress(**state.pop("progress"))
    total_steps = sum(phase.steps for phase in recipe.phases)

    def batch_loss(trainer: PhaseTrainer, step: int, batch: Batch, images: Tensor) -> Tensor:
        parameterization = PARAMETERIZATIONS[trainer.model.config.parameterization]
        losses = training_losses(
            parameterization,
            denoiser_of(trainer.forward, **recipe.forward_options(step)),
            images,
            parameterization.times(batch.ranks),
            batch.conditions,
            batch.noise,
            weights=batch.level_weights,
            teacher=teacher,
            distilled=batch.distilled,
        )
        return (batch.weights * losses).sum()

    model: nn.Module | None = None
    first_step = 0
    for index, phase in enumerate(recipe.phases):
        model = recipe.model_for(index, model).to(run.device)
        end = first_step + phase.steps
        if until_step is not None:
            end = min(end, until_step)
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
        steps = range(progress.step, end)
        for step, batch, images in prefetch(batches, steps, rank=run.rank, num_workers=run.num_workers):
            loss = batch_loss(trainer, step, batch, images)
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
                metrics = {"step": progress.step, "total_steps": total_steps, "phase": phase.name, "history": new_entries}
                report_checkpoint(run, metrics, {"progress": vars(progress), **trainer.state()})
                losses, reported_step, started = [], progress.step, time.perf_counter()
        model = trainer.finish()
        check_finite_model(model)
        first_step = end
        if end == until_step:
            break
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
