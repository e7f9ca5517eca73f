"""Time and peak memory of a training step of each transfer method, its own batches included, over full fine-tuning.

Times: the methods' steps take turns in one process, so that all see the same machine; medians of ratios. Memory: a fresh
process each, growth of its peak over loading the model. At equal batch, and with --equal-memory also at the largest batch
that fits into the memory of full fine-tuning. Run: python benchmarks/transfer_step.py --model DiT-S/2 --batch-size 8
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import platform
import statistics
import time
from dataclasses import dataclass
from types import SimpleNamespace

import click
import torch

from fine_core.data.source import ImageSet
from fine_core.dit import DIT_SIZES, DiT, DiTConfig, ModelSize
from trainables.methods import TRANSFER_METHODS, Start, TransferData
from trainables.specs.base import TrainingSpec
from trainables.storage.provenance import PeakMemory
from trainables.training.batches import BatchSource
from trainables.training.context import LocalContext
from trainables.training.loop import loss_of
from trainables.training.phase import Phase, PhaseTrainer

DEMO = DiTConfig(size=ModelSize(depth=6, width=64, num_heads=4), input_size=8, in_channels=1, num_classes=10, learn_sigma=False)
MODELS = {"demo": DEMO, **DIT_SIZES}
METHODS = [name for name, method in TRANSFER_METHODS.items() if not method.needs_learngene and name != "scratch"]
WARMUP_STEPS = 2


@dataclass(kw_only=True)
class Stepper:
    """Training steps of one method on random images."""

    trainer: PhaseTrainer
    batches: BatchSource
    done: int = 0

    @classmethod
    def of(cls, name: str, model: DiT, *, batch_size: int, device: torch.device) -> Stepper:
        config, method = model.config, TRANSFER_METHODS[name]
        run = LocalContext("never-written", device=str(device))
        training = TrainingSpec(steps=1000, batch_size=batch_size)
        images = torch.randn(256, config.in_channels, config.input_size, config.input_size)
        data = ImageSet(images=images, labels=torch.arange(256) % config.num_classes)
        # Of a transfer, batches read these alone.
        transfer = SimpleNamespace(model=config, training=training, options=method.default_options(), data_seed=0)
        batches = method.batches(transfer, TransferData(target=data, bank=data, base=model, device=device))
        method.prepare(model, method.default_options(), Start())
        return cls(
            trainer=PhaseTrainer(model, Phase(name=name, steps=1000, lr=1e-4), training, run, skips_parameters=False),
            batches=batches,
        )

    def step(self) -> float:
        """Seconds of one step."""
        started = time.perf_counter()
        b = self.batches.batch(self.done)
        self.trainer.step(loss_of(self.trainer, self.batches.teacher), b, b.images, {}, self.done)
        self.done += 1
        if b.noise.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started


def step_times(methods: list[str], config: DiTConfig, batch_sizes: dict[str, int], rounds: int, device: torch.device):
    """Seconds of each step by method; the methods take turns."""
    model = DiT(config).to(device)
    steppers = {name: Stepper.of(name, copy.deepcopy(model), batch_size=batch_sizes[name], device=device) for name in methods}
    for stepper in steppers.values():
        for _ in range(WARMUP_STEPS):
            stepper.step()
    rounds_s = [{name: stepper.step() for name, stepper in steppers.items()} for _ in range(rounds)]
    return {name: [times[name] for times in rounds_s] for name in methods}


def _peak_growth(name: str, config: DiTConfig, batch_size: int, device: str, threads: int) -> int:
    torch.set_num_threads(threads)
    where = torch.device(device)
    TRANSFER_METHODS[name].count_trained(
        config, TRANSFER_METHODS[name].default_options()
    )  # imports what a method needs, unmeasured
    model = DiT(config).to(where)
    before = PeakMemory(where).bytes()
    memory = PeakMemory(where)
    stepper = Stepper.of(name, model, batch_size=batch_size, device=where)
    for _ in range(2):
        stepper.step()
    return memory.bytes() - before


def peak_memory_bytes(name: str, config: DiTConfig, batch_size: int, device: str, threads: int) -> int:
    """Memory that two training steps need beside the loaded model, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_growth, (name, config, batch_size, device, threads))


def largest_batch(name: str, config: DiTConfig, start: int, budget_bytes: int, device: str, threads: int) -> int:
    """The largest batch, to an eighth of `start`, whose peak stays within the budget."""
    unit = max(1, start // 8)
    batch = start
    while peak_memory_bytes(name, config, batch + unit, device, threads) <= budget_bytes:
        batch += unit
    return batch


@click.command()
@click.option("--model", type=click.Choice(list(MODELS)), default="demo", show_default=True)
@click.option("--batch-size", type=int, default=64, show_default=True)
@click.option("--methods", "names", multiple=True, type=click.Choice(METHODS), default=METHODS, help="May be repeated.")
@click.option("--rounds", type=int, default=20, show_default=True, help="Steps of each method.")
@click.option("--threads", type=int, default=1, show_default=True, help="CPU threads.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--equal-memory", is_flag=True, help="Also compare at the largest batch in the memory of full fine-tuning.")
def main(
    model: str, batch_size: int, names: tuple[str, ...], rounds: int, threads: int, device: str, equal_memory: bool
) -> None:
    torch.set_num_threads(threads)
    config, names = MODELS[model], list(dict.fromkeys(["full", *names]))
    times = step_times(names, config, dict.fromkeys(names, batch_size), rounds, torch.device(device))
    peaks = {name: peak_memory_bytes(name, config, batch_size, device, threads) for name in names}
    results = {
        name: {
            "step_s": statistics.median(times[name]),
            "time_over_full": statistics.median(mine / full for mine, full in zip(times[name], times["full"], strict=True)),
            "memory_bytes": peaks[name],
            "memory_over_full": peaks[name] / peaks["full"],
        }
        for name in names
    }
    if equal_memory:
        batches = {
            name: batch_size if name == "full" else largest_batch(name, config, batch_size, peaks["full"], device, threads)
            for name in names
        }
        times = step_times(names, config, batches, rounds, torch.device(device))
        for name in names:
            per_image = [
                (mine / batches[name]) / (full / batches["full"]) for mine, full in zip(times[name], times["full"], strict=True)
            ]
            results[name] |= {"batch_at_equal_memory": batches[name], "time_per_image_over_full": statistics.median(per_image)}
    hardware = torch.cuda.get_device_name() if device == "cuda" else f"CPU {platform.machine()}, {threads} threads"
    print(json.dumps({"model": model, "batch_size": batch_size, "hardware": hardware, "methods": results}, indent=1))


if __name__ == "__main__":
    main()
