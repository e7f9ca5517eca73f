"""Options of how jobs compute: precision, samples at once, recomputation and compilation."""

from __future__ import annotations

from typing import Any

import click
import torch

from fine_core.precision import BF16_CAPABILITY, PRECISIONS
from trainables.training.computing import SWITCH, Computing

COMPUTE_OPTIONS = (
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


def resolved_precision(choice: str, gpus_per_worker: float) -> str:
    """The precision that `auto` means where the jobs will run. A cluster's GPUs, if none is here, are taken to have bf16."""
    if choice != "auto":
        return choice
    if not gpus_per_worker:
        return "fp32"
    here = torch.cuda.is_available()
    return "bf16" if not here or torch.cuda.get_device_capability() >= BF16_CAPABILITY else "fp32"


def computing_from(options: dict[str, Any]) -> Computing:
    """How steps are computed. Raises ValueError."""
    names = ("micro_batch", "activation_checkpointing", "compile")
    return Computing(**{name: options[name] for name in names})
