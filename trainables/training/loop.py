"""The training loop: phases of steps over the models of a recipe. It is the same in every runner and after every resume.

A step's batch depends on its number alone (see batches.py), and each worker takes its share of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fine_core.denoiser import denoiser_of
from fine_core.dit import DiT, DiTConfig, count_macs
from fine_core.evaluation.finite import check_finite_model
from fine_core.parameterizations import PARAMETERIZATIONS
from fine_core.parameterizations.losses import training_losses
from fine_core.precision import check_precision, denoiser_in, products_in
from fine_core.speed import FLOPS_PER_MAC, PASSES_PER_STEP, training_speed
from trainables.specs.base import TrainingSpec
from trainables.training.batches import Batch, BatchSource
from trainables.training.checkpoint import report_checkpoint, restore_checkpoint
from trainables.training.computing import agreed_plan, step_plan
from trainables.training.context import RunContext
from trainables.training.phase import LossOf, Phase, PhaseTrainer
from trainables.training.prefetch import prefetch

LOG_EVERY_STEPS = 10


class Recipe(Protocol):
    """What is trained: one model per phase, each built from the one before. A model's `config` is a `DiTConfig`."""

    phases: tuple[Phase, ...]
    skips_parameters: bool  # whether a step may leave trainable parameters without gradient, on all workers alike

    def model_for(self, phase: int, previous: nn.Module | None) -> nn.Module:
        """The model of a phase, trainable parameters marked. What is frozen must not depend on earlier training."""

    def forward_options(self, step: int) -> dict[str, Any]:
        """Keyword arguments of the model's forward pass in this step."""


# By the steps taken: what is done with a dense copy of the model as it is then, with averaged weights.
Milestones = Mapping[int, Callable[[DiT], None]]


class TrainingDiverged(RuntimeError):
    """The loss is no longer a finite number."""


@dataclass(kw_only=True)
class Progress:
    """State of a run besides its tensors."""

    step: int = 0
    phase: int = 0
    train_s: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def costs(self, config: DiTConfig, training: TrainingSpec, run: RunContext) -> dict[str, float]:
        """Seconds and steps that the training took, and its speed."""
        speed = training_speed(
            macs=count_macs(config),
            images=self.step * training.batch_size,
            seconds=self.train_s,
            num_workers=run.num_workers,
            device_name=torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "",
        )
        return {"train_s": self.train_s, "train_steps": self.step, **speed}


def train(
    recipe: Recipe,
    *,
    batches: BatchSource,
    training: TrainingSpec,
    run: RunContext,
    checkpoint_every_steps: int,
    until_step: int | None = None,
    milestones: Milestones | None = None,
) -> tuple[nn.Module, Progress]:
    """Run all phases from the latest checkpoint on; returns the last model with averaged weights.

    With `until_step` the run stops there, checkpointed: without it, it goes on as if it had never stopped. `milestones` that
    are passed before the run starts are left out. Raises
    TrainingDiverged on a loss and NotFinite on weights that are not finite, ValueError if the batch does not divide among the
    workers.
    """
    if training.batch_size % run.num_workers:
        raise ValueError(f"batch_size {training.batch_size} does not divide among {run.num_workers} workers")
    check_precision(training.precision, run.device)
    with products_in(training.precision):
        return _train(recipe, batches, training, run, checkpoint_every_steps, until_step, milestones or {})


def _train(
    recipe: Recipe,
    batches: BatchSource,
    training: TrainingSpec,
    run: RunContext,
    checkpoint_every_steps: int,
    until_step: int | None,
    milestones: Milestones,
) -> tuple[nn.Module, Progress]:
    state = restore_checkpoint(run)
    if state is not None and until_step is not None and state["progress"]["step"] > until_step:
        state = None  # this stretch of the training is over; it can only be had again from the start
    progress = Progress() if state is None else Progress(**state.pop("progress"))
    total_steps = sum(phase.steps for phase in recipe.phases)

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
        plan = step_plan(
            run.computing,
            model,
            samples=training.batch_size // run.num_workers,
            flops=FLOPS_PER_MAC * PASSES_PER_STEP * count_macs(model.config) * training.batch_size * phase.steps,
            precision=training.precision,
            device=run.device,
            gpu_share=run.gpu_share,
        )
        plan = agreed_plan(run.gather(plan))
        trainer = PhaseTrainer(model, phase, training, run, skips_parameters=recipe.skips_parameters, plan=plan)
        loss_of_samples = loss_of(trainer, batches.teacher)
        if state is not None:
            trainer.load_state(state)
            state = None
        progress.phase = index
        if progress.step == 0:
            pass_milestone(milestones, 0, trainer)
        losses: list[Tensor] = []  # stay on the device until the next report
        started = time.perf_counter()
        reported_step = progress.step
        steps = range(progress.step, end)
        for step, batch, images in prefetch(batches, steps, rank=run.rank, num_workers=run.num_workers):
            loss = trainer.step(loss_of_samples, batch, images, recipe.forward_options(step), step - first_step)
            losses.append(loss)
            progress.step = step + 1
            started += pass_milestone(milestones, progress.step, trainer)
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


def pass_milestone(milestones: Milestones, step: int, trainer: PhaseTrainer) -> float:
    """Do what is to be done after a step, outside the precision of the training; returns the seconds that it took."""
    if step not in milestones:
        return 0.0
    started = time.perf_counter()
    with products_in("fp32"):
        milestones[step](trainer.averaged())
    return time.perf_counter() - started


def loss_of(trainer: PhaseTrainer, teacher: nn.Module | None) -> LossOf:
    """The loss of samples by a phase's model as it is, in the precision of its training."""
    precision = trainer.training.precision
    taught = None if teacher is None else denoiser_in(precision, denoiser_of(teacher))
    parameterization = PARAMETERIZATIONS[trainer.model.config.parameterization]

    def loss(batch: Batch, images: Tensor, options: dict[str, Any]) -> Tensor:
        losses = training_losses(
            parameterization,
            denoiser_in(precision, denoiser_of(trainer.forward, **options)),
            images,
            parameterization.times(batch.ranks),
            batch.conditions,
            batch.noise,
            weights=batch.level_weights,
            teacher=taught,
            distilled=batch.distilled,
        )
        return (batch.weights * losses).sum()

    return loss


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
