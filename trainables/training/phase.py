"""A phase of training: its model, optimizer and averaged weights, and how a step's gradients are computed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fine_core.dit import DiT
from fine_core.initializers.rebuilt import RebuiltDiT, merge
from trainables.specs.base import TrainingSpec
from trainables.storage.warning import warn_once
from trainables.training.batches import Batch
from trainables.training.computing import StepPlan, prepare, restore, set_recomputation, without_compilation
from trainables.training.context import RunContext


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training with its own trainable parameters and learning rate."""

    name: str
    steps: int
    lr: float


LossOf = Callable[[Batch, Tensor, dict[str, Any]], Tensor]  # of samples, their images and further forward options


class PhaseTrainer:
    """Optimizer and EMA over the trainable parameters of one phase's model; a step is computed as `plan` says."""

    def __init__(
        self,
        model: nn.Module,
        phase: Phase,
        training: TrainingSpec,
        run: RunContext,
        *,
        skips_parameters: bool,
        plan: StepPlan | None = None,
    ) -> None:
        self.model, self.phase, self.training = model, phase, training
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters = list(self.trainable.values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=phase.lr, weight_decay=training.weight_decay, fused=True)
        self.ema = [p.detach().clone() for p in self.parameters]
        self.forward = model
        plan = plan or StepPlan(micro_batch=training.batch_size, recomputes=False, compiles=False)
        self.micro_batch, self.recomputes, self.compiles = plan.micro_batch, plan.recomputes, plan.compiles
        self.can_halve = run.num_workers == 1  # the others would wait for the one that starts its step again
        prepare(model, plan)
        if run.num_workers > 1:
            self._wrap(skips_parameters)

    def _wrap(self, skips_parameters: bool) -> None:
        """Average gradients over the workers."""
        settings = {"broadcast_buffers": False, "find_unused_parameters": skips_parameters, "gradient_as_bucket_view": True}
        self.forward = DistributedDataParallel(self.model, **settings)
        self.skips_parameters = skips_parameters

    def step(self, loss_of: LossOf, batch: Batch, images: Tensor, options: dict[str, Any], step_in_phase: int) -> Tensor:
        """One step of the optimizer; returns its loss. Out of memory, it takes half as many samples at once from then on."""
        warmup = min(1.0, (step_in_phase + 1) / max(1, self.training.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.phase.lr * warmup
        while True:
            try:
                loss = self._backward(loss_of, batch, images, options)
                break
            except torch.OutOfMemoryError:
                if not self.can_halve or self.micro_batch <= 1:
                    raise
                self.micro_batch = -(-min(self.micro_batch, len(images)) // 2)
                warn_once(f"out of memory: {self.micro_batch} samples at once from now on")
            except torch._dynamo.exc.TorchDynamoException as error:
                without_compilation(self.model, error)
                if isinstance(self.forward, DistributedDataParallel):  # which waits for gradients of the failed pass
                    self._wrap(self.skips_parameters)
            self._clear()
        if self.training.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.training.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # EMA warm-up: a short horizon at first, so that the initial weights are forgotten.
        decay = min(self.training.ema_decay, (1 + step_in_phase) / (10 + step_in_phase))
        get_ema_multi_avg_fn(decay)(self.ema, self.parameters, None)
        return loss

    def _backward(self, loss_of: LossOf, batch: Batch, images: Tensor, options: dict[str, Any]) -> Tensor:
        """Gradients of the whole batch's loss, micro-batch by micro-batch; workers add theirs up in the last one."""
        if len(images) <= self.micro_batch:
            loss = loss_of(batch, images, options)
            loss.backward()
            return loss.detach()
        rebuilt = None
        if isinstance(self.forward, RebuiltDiT):  # once for all micro-batches; under DDP a pass must start at the factors
            rebuilt = self.forward.rebuild(**options)
            options = options | {"weights": rebuilt.leaves}
        losses = []
        for part, samples in batch.micro_batches(self.micro_batch):
            is_last = part.stop >= len(images)
            alone = not is_last and isinstance(self.forward, DistributedDataParallel)
            with self.forward.no_sync() if alone else nullcontext():
                loss = loss_of(samples, images[part], options)
                loss.backward()
            losses.append(loss.detach())
        if rebuilt is not None:
            rebuilt.backward()
        return torch.stack(losses).sum()

    def _clear(self) -> None:
        """Before a step starts again: nothing of the attempt may stay."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()

    @torch.no_grad()
    def averaged(self) -> DiT:
        """A dense copy with the averaged weights, as the training would end with here."""
        model = copy.deepcopy(self.model)
        own = dict(model.named_parameters())
        for name, average in zip(self.trainable, self.ema, strict=True):
            own[name].copy_(average)
        restore(model)
        return merge(model) if isinstance(model, RebuiltDiT) else model

    @torch.no_grad()
    def finish(self) -> nn.Module:
        """The phase's model with its averaged weights."""
        for parameter, average in zip(self.parameters, self.ema, strict=True):
            parameter.copy_(average)
        restore(self.model)
        if self.compiles:
            torch.compiler.reset()  # a process that is used again would reach the limit of what is kept compiled
        return self.model

    def state(self) -> dict[str, Any]:
        return {
            "trainable": {name: p.detach() for name, p in self.trainable.items()},
            "ema": dict(zip(self.trainable, self.ema, strict=True)),
            "optimizer": self.optimizer.state_dict(),
            "computing": {"micro_batch": self.micro_batch, "recomputes": self.recomputes},
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        for (name, parameter), average in zip(self.trainable.items(), self.ema, strict=True):
            parameter.copy_(state["trainable"][name])
            average.copy_(state["ema"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if "computing" in state:  # the same sums as before, whatever memory is free today
            self.micro_batch, self.recomputes = state["computing"]["micro_batch"], state["computing"]["recomputes"]
            set_recomputation(self.model, self.recomputes)
