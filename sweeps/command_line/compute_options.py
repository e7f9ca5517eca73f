"""Options of how jobs compute: GPUs, precision, samples at once, recomputation and compilation."""

from __future__ import annotations

import os
from shutil import which
from typing import Any

import click
import torch

from fine_core.precision import BF16_CAPABILITY, PRECISIONS, check_precision
from sweeps.execution.cluster import cluster_gpus, is_joined
from trainables.training.computing import SWITCH, Computing

COMPILERS = ("g++", "clang++", "c++")


def _gpus(context: click.Context, parameter: click.Parameter, value: str) -> str | float:
    try:
        return value if value == "auto" else float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not auto, and no number such as 1 or 0.5") from None


COMPUTE_OPTIONS = (
    click.option(
        "--gpus-per-worker",
        callback=_gpus,
        metavar="auto|NUMBER",
        help="GPUs per worker, also a fraction; auto: one where there are GPUs, else none.  [default: the preset's]",
    ),
    click.option("--cpus-per-worker", type=int, default=1, show_default=True, help="CPU cores, and threads, per worker."),
    click.option(
        "--precision",
        type=click.Choice(["auto", *PRECISIONS]),
        default="auto",
        show_default=True,
        help="Precision of products in training: bf16 on a GPU that has it, else fp32. Part of a model's identity.",
    ),
    click.option(
        "--sampling-precision",
        type=click.Choice(["auto", *PRECISIONS]),
        default="auto",
        show_default=True,
        help="Precision of products where images are drawn. Part of the protocol.",
    ),
    click.option("--gpu-hour-price", type=click.FloatRange(min=0), help="Price of a GPU for an hour, for the plan's costs."),
    click.option("--micro-batch", type=int, help="Samples at once on a worker.  [default: as many as its memory holds]"),
    click.option(
        "--activation-checkpointing",
        type=click.Choice(SWITCH),
        default="auto",
        show_default=True,
        help="Computing blocks again in the backward pass: less memory, a third more time.",
    ),
    click.option(
        "--compile",
        type=click.Choice(SWITCH),
        default="auto",
        show_default=True,
        help="Compilation of blocks for training: on a GPU, for trainings of minutes.",
    ),
)


def resolved_gpus(choice: str | float) -> float:
    """GPUs per worker: one where this machine, or the cluster to join, has any."""
    if choice != "auto":
        return float(choice)
    found = cluster_gpus() if is_joined() else torch.cuda.device_count()
    return 1.0 if found >= 1 else 0.0


def resolved_precision(choice: str, gpus_per_worker: float) -> str:
    """The precision that `auto` means where the jobs will run. The GPUs of a cluster are taken to have bf16.

    Raises ValueError for one that this machine lacks, if they run on it.
    """
    if choice != "auto":
        if not is_joined() and (not gpus_per_worker or torch.cuda.is_available()):
            check_precision(choice, torch.device("cuda" if gpus_per_worker else "cpu"))
        return choice
    if not gpus_per_worker:
        return "fp32"
    here = torch.cuda.is_available() and not is_joined()
    return "bf16" if not here or torch.cuda.get_device_capability() >= BF16_CAPABILITY else "fp32"


def computing_from(options: dict[str, Any]) -> Computing:
    """How steps are computed. Raises ValueError."""
    if options["compile"] == "on" and not is_joined() and not any(map(which, COMPILERS)) and "CXX" not in os.environ:
        raise ValueError(f"--compile on needs a C++ compiler, such as {COMPILERS[0]}; install one, or leave it out")
    names = ("micro_batch", "activation_checkpointing", "compile")
    return Computing(**{name: options[name] for name in names})
