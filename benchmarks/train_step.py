"""A training step of ours beside others', side by side in one process: same weights, same batch size, taking turns.

    python -m benchmarks.train_step                         # sizes that a CPU can do
    python -m benchmarks.train_step --sizes DiT-XL/2:32,DiT-B/2:128 --precision bf16 --compile on --device cuda

- ours: the project's own trainer with its batches (fused AdamW, foreach EMA), for full fine-tuning, DiffFit and Diff-Tuning.
- diffusers: `DiTTransformer2DModel` trained as its examples do by accelerate: autocast, AdamW, EMA of all weights.
- plain: the public recipe in its simplest form: our network, AdamW, an EMA parameter by parameter.

Prints medians and ratios, and writes JSON with --out.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fine_core.checkpoints.diffusers_folder import transformer_of
from fine_core.data.source import ImageSet
from fine_core.denoiser import LABEL
from fine_core.dit import DIT_SIZES, DiT, DiTConfig, ModelSize, count_macs
from fine_core.parameterizations import PARAMETERIZATIONS
from fine_core.parameterizations.losses import training_losses
from fine_core.precision import autocast, products_in
from fine_core.speed import training_speed
from trainables.methods import TRANSFER_METHODS, Start, TransferData
from trainables.specs.base import TrainingSpec
from trainables.storage.provenance import PeakMemory
from trainables.training.computing import Computing, step_plan
from trainables.training.context import LocalContext
from trainables.training.loop import loss_of
from trainables.training.phase import Phase, PhaseTrainer
from trainables.training.reproducible import make_reproducible

METHODS = ("full", "difffit", "diff-tuning")
EMA_DECAY = 0.9999
OF_A_CPU = "demo:64,L6-D128:64,DiT-S/2:4"


def config_named(name: str) -> DiTConfig:
    """A published size; the demo's largest (8 pixels), or six blocks of 128 channels for 16 pixels."""
    pixels = {"demo": (6, 64, 8), "L6-D128": (6, 128, 16)}
    if name not in pixels:
        return DIT_SIZES[name]
    depth, width, size = pixels[name]
    shape = ModelSize(depth=depth, width=width, num_heads=width // 16)
    return DiTConfig(size=shape, input_size=size, patch_size=2, in_channels=1, num_classes=10, learn_sigma=False)


def ours(
    name: str, model: DiT, batch_size: int, device: torch.device, precision: str, computing: Computing
) -> Callable[[], Any]:
    """One step of a transfer method by the project's trainer."""
    config, method = model.config, TRANSFER_METHODS[name]
    training = TrainingSpec(steps=10_000, batch_size=batch_size, precision=precision)
    images = torch.randn(256, config.in_channels, config.input_size, config.input_size)
    data = ImageSet(images=images, labels=torch.arange(256) % config.num_classes)
    transfer = SimpleNamespace(model=config, training=training, options=method.default_options(), data_seed=0)
    batches = method.batches(transfer, TransferData(target=data, bank=data, base=model, device=device))
    method.prepare(model, method.default_options(), Start())
    plan = step_plan(computing, model, samples=batch_size, flops=0.0, precision=precision, device=device)
    phase, run = Phase(name=name, steps=10_000, lr=1e-4), LocalContext("never-written", device=str(device))
    trainer = PhaseTrainer(model, phase, training, run, skips_parameters=False, plan=plan)
    loss, done = loss_of(trainer, batches.teacher), iter(range(10_000))

    def step() -> None:
        number = next(done)
        batch = batches.batch(number)
        trainer.step(loss, batch, batch.images, {}, number)

    return step


def _others_step(network: nn.Module, config: DiTConfig, batch_size: int, device: torch.device, precision: str, *, fused: bool):
    """AdamW and an EMA of all weights around a network (x, t, y) -> output, as published training scripts have them."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.0, fused=fused)
    average = [parameter.detach().clone() for parameter in network.parameters()]
    parameterization = PARAMETERIZATIONS[config.parameterization]
    images = torch.randn(256, config.in_channels, config.input_size, config.input_size, device=device)

    def denoiser(x: Tensor, t: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        with autocast(precision, device):
            return network(x, t, conditions[LABEL]).float()

    def step() -> None:
        rows = torch.randint(256, (batch_size,), device=device)
        t, y = (
            torch.randint(1000, (batch_size,), device=device),
            torch.randint(config.num_classes, (batch_size,), device=device),
        )
        x0 = images[rows]
        losses = training_losses(parameterization, denoiser, x0, t, {LABEL: y}, torch.randn_like(x0))
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for kept, parameter in zip(average, network.parameters(), strict=True):
                kept.mul_(EMA_DECAY).add_(parameter, alpha=1 - EMA_DECAY)

    return step


class OfDiffusers(nn.Module):
    """diffusers' transformer, called as ours."""

    def __init__(self, model: DiT) -> None:
        super().__init__()
        self.transformer = transformer_of(model, plain=True)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.transformer(x, timestep=t.long(), class_labels=y).sample


def measure(
    name: str, batch_size: int, *, device: torch.device, precision: str, computing: Computing, rounds: int
) -> dict[str, Any]:
    """Seconds of a step of every arm, which take turns; medians, and ratios of the same round."""
    torch.manual_seed(0)
    model = DiT(config_named(name)).to(device)
    given = (batch_size, device, precision)
    arms = {method: ours(method, copy.deepcopy(model), *given, computing) for method in METHODS}
    arms["plain"] = _others_step(copy.deepcopy(model).train(), model.config, *given, fused=False)
    arms["diffusers"] = _others_step(OfDiffusers(model).to(device).train(), model.config, *given, fused=False)
    peaks = {}
    for arm, step in arms.items():
        memory = PeakMemory(device)
        for _ in range(3):
            step()
        peaks[arm] = memory.bytes() if device.type == "cuda" else None
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm, step in arms.items():
            started = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[arm].append(time.perf_counter() - started)
    seconds = {arm: statistics.median(found) for arm, found in times.items()}
    ratio = {arm: statistics.median([a / b for a, b in zip(times[arm], times["full"], strict=True)]) for arm in arms}
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    speed = training_speed(
        macs=count_macs(model.config), images=batch_size, seconds=seconds["full"], num_workers=1, device_name=device_name
    )
    return {"size": name, "batch": batch_size, "step_s": seconds, "over_full": ratio, "peak_bytes": peaks, **speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=OF_A_CPU, help="SIZE:BATCH,...")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--compile", default="off")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    make_reproducible(device)
    rows = []
    for entry in options.sizes.split(","):
        name, _, batch = entry.rpartition(":")
        with products_in(options.precision):
            computing = Computing(compile=options.compile)
            given = {"device": device, "precision": options.precision, "computing": computing, "rounds": options.rounds}
            rows.append(measure(name, int(batch), **given))
        row = rows[-1]
        ratios = ", ".join(f"{arm} {value:.2f}" for arm, value in row["over_full"].items() if arm != "full")
        print(
            f"{name} batch {batch} {options.precision}: full {1000 * row['step_s']['full']:.1f} ms; over it: {ratios}",
            flush=True,
        )
    found = {"date": str(date.today()), "precision": options.precision, "compile": options.compile, "threads": options.threads}
    found["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    if options.out:
        options.out.write_text(json.dumps(found | {"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
