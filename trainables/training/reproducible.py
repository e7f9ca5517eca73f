"""Kernels that give the same bits every time, so that a resumed run equals an uninterrupted one on a GPU too.

And plain fp32 products wherever no other precision is asked for: torch's convolutions would take TF32, with which features, and
so scores, differ between GPUs.
"""

from __future__ import annotations

import os
import warnings

import torch

CUBLAS_WORKSPACE = ":4096:8"  # which cuBLAS needs to sum in one order


def make_reproducible(device: torch.device) -> None:
    """Choose deterministic kernels for this process, if it computes on a GPU. Before its first matrix product there.

    Default kernels of attention and of the label table's gradient add in any order: the same training gave other weights
    each time. On an H200 the deterministic ones cost 1 % of a step in fp32 (benchmarks/results).
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    warnings.filterwarnings("ignore", message=".*deterministic.*")
