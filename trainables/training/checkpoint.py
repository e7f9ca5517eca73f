"""Checkpoints of a job: its state, and a progress file that is written after it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from trainables.storage.files import PROGRESS_FILE, STATE_FILE
from trainables.training.context import RunContext


def report_checkpoint(run: RunContext, metrics: dict[str, Any], state: dict[str, Any]) -> None:
    """Report progress (with its `step`) and keep the state. Rank 0 alone writes."""
    if run.rank != 0:
        run.report(metrics, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / STATE_FILE)
        state_bytes = (Path(folder) / STATE_FILE).stat().st_size
        (Path(folder) / PROGRESS_FILE).write_text(json.dumps({"step": metrics["step"], "state_bytes": state_bytes}))
        run.report(metrics, Path(folder))


def restore_checkpoint(run: RunContext) -> dict[str, Any] | None:
    """The state of the latest checkpoint, None at a fresh start."""
    with run.restore() as folder:
        if folder is None:
            return None
        return torch.load(folder / STATE_FILE, map_location=run.device, weights_only=True)
