"""Sampling with guidance by us and by diffusers' own `DiTPipeline`, side by side: same weights, scheduler, steps and batch.

python -m benchmarks.sampling                           # sizes that a CPU can do
python -m benchmarks.sampling --sizes DiT-XL/2:8 --precision bf16 --device cuda
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTPipeline

from benchmarks.train_step import config_named
from fine_core.checkpoints.diffusers_folder import transformer_of
from fine_core.denoiser import LABEL
from fine_core.dit import DiT
from fine_core.pipeline.pixel_vae import PixelVAE
from fine_core.sampling.draw import sample_images
from fine_core.sampling.sampler import SamplerSpec
from fine_core.sampling.schedulers import make_scheduler

STEPS, GUIDANCE = 15, 1.5
OF_A_CPU = "demo:64,L6-D128:32,DiT-S/2:4"


def measure(name: str, batch: int, *, device: torch.device, precision: str, rounds: int) -> dict[str, Any]:
    """Seconds for a batch of images by both, which take turns. Guided, and without guidance, which the pipeline cannot skip."""
    torch.manual_seed(0)
    model = DiT(config_named(name)).to(device).eval()
    labels = torch.arange(batch, device=device) % model.config.num_classes
    pipeline = DiTPipeline(
        transformer=transformer_of(model, plain=True), vae=PixelVAE(), scheduler=make_scheduler("dpm-solver++", model.config)
    ).to(device)
    if precision == "bf16":
        pipeline = pipeline.to(torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)

    def ours(scale: float) -> None:
        spec = SamplerSpec(sampler="dpm-solver++", sampling_steps=STEPS, guidance_scale=scale, precision=precision)
        sample_images(model, {LABEL: labels}, spec, generator=torch.Generator(device=device).manual_seed(0))

    arms = {
        "ours": lambda: ours(GUIDANCE),
        "ours, no guidance": lambda: ours(1.0),
        "diffusers": lambda: pipeline(labels.tolist(), guidance_scale=GUIDANCE, num_inference_steps=STEPS),
    }
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(rounds + 1):
        for arm, draw in arms.items():
            started = time.perf_counter()
            draw()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first is a warm-up
                times[arm].append(time.perf_counter() - started)
    seconds = {arm: statistics.median(found) for arm, found in times.items()}
    ratio = {arm: statistics.median([a / b for a, b in zip(times[arm], times["ours"], strict=True)]) for arm in arms}
    return {"size": name, "batch": batch, "steps": STEPS, "batch_s": seconds, "over_ours": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=OF_A_CPU, help="SIZE:BATCH,...")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, rows = torch.device(options.device), []
    for entry in options.sizes.split(","):
        name, _, batch = entry.rpartition(":")
        rows.append(measure(name, int(batch), device=device, precision=options.precision, rounds=options.rounds))
        ratios = ", ".join(f"{arm} {value:.2f}" for arm, value in rows[-1]["over_ours"].items() if arm != "ours")
        print(f"{name} batch {batch}: ours {1000 * rows[-1]['batch_s']['ours']:.0f} ms; over it: {ratios}", flush=True)
    if options.out:
        found = {"date": str(date.today()), "precision": options.precision, "torch": torch.__version__, "rows": rows}
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
