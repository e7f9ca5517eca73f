"""Where a result comes from (job, code, packages, hardware) and the peak memory of a stretch of work."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("fine-sweeps", "torch", "timm", "diffusers", "peft", "torchmetrics", "ray", "numpy")


@lru_cache(maxsize=1)
def provenance() -> dict[str, str]:
    """Git commit, versions and hardware of this process."""
    return {
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU {platform.machine()}",
        **{package: _version(package) for package in PACKAGES},
    }


def _git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    except FileNotFoundError:  # no git on this machine
        return "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


class PeakMemory:
    """Peak memory in bytes since its creation: of the GPU where there is one, else of the process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif sys.platform == "linux":
            with suppress(PermissionError):  # some containers forbid it; the peak is then that of the whole process
                Path("/proc/self/clear_refs").write_text("5")  # 5 resets the peak that VmHWM reports

    def bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if sys.platform == "linux":
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            return int(status["VmHWM"].split()[0]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
