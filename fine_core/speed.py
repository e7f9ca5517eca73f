"""How fast a training is, and how much of its device it uses: MFU (Chowdhery et al., arXiv 2204.02311, appendix B)."""

from __future__ import annotations

import re

FLOPS_PER_MAC = 2
PASSES_PER_STEP = 3  # forward, and a backward pass that costs two; what is recomputed does not count

# Peak of dense bf16 products (fp16 where there is no bf16), in FLOP/s, from NVIDIA's data sheets. The first name that is a
# word of the device's own counts.
BF16_PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A40": 150e12,
    "A10G": 70e12,
    "A10": 125e12,
    "A6000": 155e12,
    "RTX 6000 Ada": 364e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}


def bf16_peak(device_name: str) -> float | None:
    """Peak FLOP/s of a device by its name; None if it is not known."""
    return next((peak for name, peak in BF16_PEAKS.items() if re.search(rf"\b{name}\b", device_name)), None)


def training_speed(*, macs: int, images: int, seconds: float, num_workers: int, device_name: str) -> dict[str, float]:
    """Images and FLOP per second of a training of so many images, over all workers, and the share of the devices' bf16 peak
    where it is known. Empty for one that took no time."""
    if not images or seconds <= 0:
        return {}
    flops_per_s = FLOPS_PER_MAC * PASSES_PER_STEP * macs * images / seconds
    found = {"train_images_per_s": images / seconds, "train_flops_per_s": flops_per_s}
    peak = bf16_peak(device_name)
    return found if peak is None else found | {"mfu": flops_per_s / (peak * num_workers)}
