"""All that must be measured on a GPU, in one command of at most six minutes: writes benchmarks/results/<device>-<date>.json.

    python -m benchmarks.gpu

Training steps (precisions, compilation) and sampling beside diffusers, predicted against measured memory, a resumed training
against an uninterrupted one in bf16 and compiled, attention's gradients at head size 72 by every backend, and metrics of
50,000 x 2,048 features. Parts that the time does not reach are named.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import sampling, train_step
from fine_core.data.registry import load_dataset
from fine_core.dit import DiT, DiTConfig, ModelSize
from fine_core.evaluation.metrics.manifold import share_within
from fine_core.precision import products_in
from trainables.specs.base import TrainingSpec
from trainables.training.batches import DenoisingBatches
from trainables.training.computing import Computing
from trainables.training.context import LocalContext
from trainables.training.loop import train
from trainables.training.memory import predicted_peak_bytes
from trainables.training.phase import Phase
from trainables.training.reproducible import make_reproducible

BUDGET_S = 360
BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)


def training_steps(device: torch.device, sizes: list[tuple[str, int]]) -> list[dict[str, Any]]:
    rows = []
    for name, batch in sizes:
        for precision, compile in (("fp32", "off"), ("tf32", "off"), ("bf16", "off"), ("bf16", "on")):
            if precision == "tf32" and device.type != "cuda":
                continue
            with products_in(precision):
                row = train_step.measure(
                    name, batch, device=device, precision=precision, computing=Computing(compile=compile), rounds=5
                )
            predicted = predicted_peak_bytes(train_step.config_named(name), images=batch, precision=precision)
            rows.append(row | {"precision": precision, "compile": compile, "predicted_peak_bytes": predicted})
            torch._dynamo.reset()
    return rows


def sampling_times(device: torch.device, sizes: list[tuple[str, int]]) -> list[dict[str, Any]]:
    return [sampling.measure(name, batch, device=device, precision="bf16", rounds=3) for name, batch in sizes]


class _Recipe:
    phases = (Phase(name="x", steps=6, lr=1e-3),)
    skips_parameters = False

    def model_for(self, phase: int, previous: Any) -> DiT:
        torch.manual_seed(0)
        size = ModelSize(depth=4, width=128, num_heads=4)
        return DiT(DiTConfig(size=size, input_size=8, in_channels=1, num_classes=10, learn_sigma=False))

    def forward_options(self, step: int) -> dict[str, Any]:
        return {}


def resumed_is_uninterrupted(device: torch.device) -> dict[str, bool]:
    """In bf16 with compiled blocks, recomputation and micro-batches."""
    training = TrainingSpec(steps=6, batch_size=32, precision="bf16")
    batches = DenoisingBatches(load_dataset("digits", "train"), training, null_label=10, seed=0, device=device)
    found = {}
    for compile in ("off", "on"):
        states = []
        for stops in ((), (2, 4)):
            with tempfile.TemporaryDirectory() as folder:
                run = LocalContext(Path(folder) / "run", device=str(device))
                run.computing = Computing(micro_batch=8, activation_checkpointing="on", compile=compile)
                for stop in (*stops, None):
                    model, _ = train(
                        _Recipe(), batches=batches, training=training, run=run, checkpoint_every_steps=2, until_step=stop
                    )
                states.append({name: tensor.cpu() for name, tensor in model.state_dict().items()})
        found[f"compile {compile}"] = all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    return found


def attention_gradients(device: torch.device) -> dict[str, float | str]:
    """Relative distance of every backend's gradients from the math one's, at XL/2's head size of 72."""

    def gradients(backend: SDPBackend, dtype: torch.dtype) -> torch.Tensor:
        generator = torch.Generator(device=device).manual_seed(0)
        q, k, v = (torch.randn(2, 16, 256, 72, generator=generator, device=device).to(dtype).requires_grad_() for _ in range(3))
        with sdpa_kernel(backend):
            scaled_dot_product_attention(q, k, v).float().square().sum().backward()
        return torch.cat([tensor.grad.float().flatten() for tensor in (q, k, v)])

    exact, found = gradients(SDPBackend.MATH, torch.float32), dict[str, float | str]()
    for backend in BACKENDS:
        try:
            found[backend.name] = ((gradients(backend, torch.bfloat16) - exact).norm() / exact.norm()).item()
        except RuntimeError as error:
            found[backend.name] = str(error).splitlines()[0]
    return found


def metrics_of_many(device: torch.device, number: int) -> dict[str, float]:
    """Seconds of precision and recall of so many features of 2,048 numbers."""
    real, fake = torch.randn(number, 2048, device=device), torch.randn(number, 2048, device=device)
    started = time.perf_counter()
    share_within(fake, real)
    first_s = time.perf_counter() - started
    share_within(fake, real)
    return {"features": number, "first_s": first_s, "again_s": time.perf_counter() - started - first_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cpu tries the script alone, at sizes that mean nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that PyTorch can use")
    device, on_gpu = torch.device(options.device), options.device == "cuda"
    make_reproducible(device)
    large = [("DiT-XL/2", 32), ("DiT-B/2", 128)] if on_gpu else [("demo", 4)]
    parts: dict[str, Callable[[], Any]] = {
        "attention_gradients": lambda: attention_gradients(device),
        "resumed_is_uninterrupted": lambda: resumed_is_uninterrupted(device),
        "metrics": lambda: metrics_of_many(device, 50_000 if on_gpu else 500),
        "training_steps": lambda: training_steps(device, large),
        "sampling": lambda: sampling_times(device, [("DiT-XL/2", 8)] if on_gpu else [("demo", 4)]),
    }
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    found: dict[str, Any] = {"date": str(date.today()), "device": name, "torch": torch.__version__, "not_reached": []}
    started = time.monotonic()
    for part, measure in parts.items():
        if time.monotonic() - started > BUDGET_S:
            found["not_reached"].append(part)
            continue
        try:
            found[part] = measure()
        except (RuntimeError, ValueError) as error:  # the other parts are worth having
            found[part] = {"error": str(error).splitlines()[0]}
        print(f"{part}: {json.dumps(found[part])}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{name.lower().replace(' ', '-')}-{date.today()}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
