"""How a step is computed: samples at once, recomputation, compilation. Results differ by rounding alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from fine_core.dit import DiT, count_parameters
from fine_core.initializers.rebuilt import RebuiltDiT
from trainables.storage.warning import warn_once
from trainables.training.memory import predicted_peak_bytes

SWITCH = ("auto", "on", "off")
MEMORY_SHARE = 0.9  # of what is free on a GPU, that a step may be predicted to take
EFFICIENT_MICRO_BATCH = 16  # samples: rather than going below, blocks are recomputed
COMPILED_FROM_FLOPS = 5e16  # of a training on a GPU: some minutes, of which compilation takes one


@dataclass(frozen=True, kw_only=True)
class Computing:
    """What the user asks for. `micro_batch`: samples at once on a worker, None for as many as fit its memory."""

    micro_batch: int | None = None
    activation_checkpointing: str = "auto"
    compile: str = "auto"

    def __post_init__(self) -> None:
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch is {self.micro_batch}; it must be at least 1")
        for name in ("activation_checkpointing", "compile"):
            if getattr(self, name) not in SWITCH:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(SWITCH)}")


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What is done: samples at once, whether blocks are recomputed, and whether they are compiled."""

    micro_batch: int
    recomputes: bool
    compiles: bool


def dense_models(model: nn.Module) -> list[DiT]:
    """The DiTs whose blocks a model runs."""
    if isinstance(model, RebuiltDiT):
        return model.dense_models
    return [module for module in model.modules() if isinstance(module, DiT)]


def step_plan(
    asked: Computing,
    model: nn.Module,
    *,
    samples: int,
    flops: float,
    precision: str,
    device: torch.device,
    gpu_share: float = 1.0,
) -> StepPlan:
    """The plan for steps of `samples` samples on this worker. `flops`: of the whole training; decides on compilation.

    `gpu_share`: how much of the GPU's memory is this worker's. A CPU takes the whole batch at once and compiles nothing, unless
    it is told to.
    """
    on_gpu = device.type == "cuda"
    compiles = asked.compile == "on" or (asked.compile == "auto" and on_gpu and flops >= COMPILED_FROM_FLOPS)
    recomputes = asked.activation_checkpointing == "on"
    if not on_gpu:
        return StepPlan(micro_batch=min(samples, asked.micro_batch or samples), recomputes=recomputes, compiles=compiles)
    torch.cuda.empty_cache()  # of the job before, in a process that is used again
    free, total = torch.cuda.mem_get_info(device)
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    largest = max(dense_models(model), key=lambda one: one.config.size.width)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if isinstance(model, RebuiltDiT):
        trained = max(trained, count_parameters(largest.config))  # gradients gather in the dense weights
    budget = MEMORY_SHARE * min(free, gpu_share * total) + held
    for recomputes in {"auto": (False, True), "on": (True,), "off": (False,)}[asked.activation_checkpointing]:
        for micro_batch in [asked.micro_batch] if asked.micro_batch else _halved(samples):
            peak = predicted_peak_bytes(
                largest.config,
                images=micro_batch,
                trained=trained,
                precision=precision,
                recomputes=recomputes,
                accumulates=micro_batch < samples,
            )
            if peak <= budget and (recomputes or asked.micro_batch or micro_batch >= min(samples, EFFICIENT_MICRO_BATCH)):
                return StepPlan(micro_batch=micro_batch, recomputes=recomputes, compiles=compiles)
    # It may fit all the same: the prediction is no measurement. Out of memory, the loop halves what it takes at once.
    micro_batch = asked.micro_batch or min(samples, EFFICIENT_MICRO_BATCH)
    return StepPlan(micro_batch=micro_batch, recomputes=recomputes, compiles=compiles)


def agreed_plan(plans: list[StepPlan]) -> StepPlan:
    """One plan for all workers: what the one with the least memory can do."""
    return StepPlan(
        micro_batch=min(plan.micro_batch for plan in plans),
        recomputes=any(plan.recomputes for plan in plans),
        compiles=all(plan.compiles for plan in plans),
    )


def _halved(samples: int) -> Iterator[int]:
    while True:
        yield samples
        if samples == 1:
            return
        samples = -(-samples // 2)


def prepare(model: nn.Module, plan: StepPlan) -> None:
    """Make a model's blocks recompute and compile as planned. Its weights, and so checkpoints, know nothing of it."""
    set_recomputation(model, plan.recomputes)
    for dense in dense_models(model) if plan.compiles else ():
        for block in dense.blocks:
            block.compile()  # one compilation for all blocks of a width


def set_recomputation(model: nn.Module, recomputes: bool) -> None:
    for dense in dense_models(model):
        dense.recomputes = recomputes


def restore(model: nn.Module) -> None:
    """Undo `prepare`."""
    set_recomputation(model, False)
    _drop_compilation(model)


def _drop_compilation(model: nn.Module) -> None:
    for dense in dense_models(model):
        for block in dense.blocks:
            block._compiled_call_impl = None


def without_compilation(model: nn.Module, error: Exception) -> None:
    """Turn off the compilation of a model's blocks after `error`, and warn once."""
    _drop_compilation(model)
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    warn_once(f"blocks could not be compiled ({reason[:200]}); the training goes on without")
