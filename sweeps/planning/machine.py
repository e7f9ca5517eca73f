"""How long a sweep will take on the machine that it is planned for: CPU cores, or GPUs as fast as records or tables say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from fine_core.speed import FLOPS_PER_MAC, bf16_peak
from sweeps.display.numbers import duration
from trainables.specs.base import JobSpec
from trainables.storage.store import Store

# Share of the bf16 peak that an uncompiled training of a DiT-XL/2 reached on an H200 (benchmarks/results).
ASSUMED_MFU = {"fp32": 0.04, "tf32": 0.13, "bf16": 0.26}
MOST_RECORDS = 20  # that are looked at


@dataclass(frozen=True, kw_only=True)
class GpuSpeed:
    """FLOP/s of one GPU, and where the number comes from; None where nothing is known."""

    flops_per_s: float | None
    source: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """`slots`: CPU cores that work beside each other, None where jobs run on GPUs. `gpu_hour_price`: in any currency."""

    slots: int | None
    gpu: GpuSpeed | None = None
    gpu_hour_price: float | None = None

    def estimate(self, *, core_s: float, macs: float) -> str | None:
        """How long so much work takes, in words; None if it is not known."""
        if self.slots is not None:
            return f"about {duration(core_s / self.slots)} on {self.slots} CPU cores plus start-up (an estimate)"
        if self.gpu is None or self.gpu.flops_per_s is None:
            return None
        hours = macs * FLOPS_PER_MAC / self.gpu.flops_per_s / 3600
        price = (
            "" if self.gpu_hour_price is None else f", {hours * self.gpu_hour_price:,.2f} at {self.gpu_hour_price:g} an hour"
        )
        return f"about {hours:.3g} GPU-hours{price} ({self.gpu.source}; an estimate)"


def gpu_speed(store: Store, jobs: Iterable[JobSpec], *, device_name: str | None, precision: str) -> GpuSpeed:
    """From finished jobs of the same device where there are some (of any, if no GPU is here), else from a table."""
    measured: dict[str, list[float]] = {}
    for job in jobs:
        record = store.read_record(job)
        if record is None or "train_flops_per_s" not in record.metrics:
            continue
        hardware = record.provenance.get("hardware", "")
        if hardware == device_name or (device_name is None and not hardware.startswith("CPU")):
            per_gpu = record.metrics["train_flops_per_s"] / record.metrics.get("num_workers", 1)
            measured.setdefault(hardware, []).append(per_gpu)
        if sum(map(len, measured.values())) >= MOST_RECORDS:
            break
    if measured:
        hardware, speeds = max(measured.items(), key=lambda item: len(item[1]))
        count = f"{len(speeds)} record{'s' if len(speeds) > 1 else ''}"
        return GpuSpeed(flops_per_s=median(speeds), source=f"{median(speeds) / 1e12:.3g} TFLOP/s by {count} of {hardware}")
    peak = None if device_name is None else bf16_peak(device_name)
    if peak is None:
        return GpuSpeed(flops_per_s=None, source="")
    share = ASSUMED_MFU[precision]
    return GpuSpeed(flops_per_s=share * peak, source=f"{share:.0%} of the bf16 peak of {device_name}")
