"""Checkpoints of a job: its state, and a progress file that is written after it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from fine_core.files import file_bytes, sha256_of
from trainables.storage.files import PROGRESS_FILE, STATE_FILE
from trainables.storage.warning import warn_once
from trainables.training.context import RunContext


def report_checkpoint(run: RunContext, metrics: dict[str, Any], state: dict[str, Any]) -> None:
    """Report progress (with its `step`) and keep the state. Rank 0 alone writes."""
    if run.rank != 0:
        run.report(metrics, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / STATE_FILE)
        file = Path(folder) / STATE_FILE
        progress = {"step": metrics["step"], "state_bytes": file_bytes(file), "state_sha256": sha256_of(file)}
        (Path(folder) / PROGRESS_FILE).write_text(json.dumps(progress))
        run.report(metrics, Path(folder))


def restore_checkpoint(run: RunContext) -> dict[str, Any] | None:
    """The state of the latest checkpoint, None at a fresh start or where the checkpoint is damaged."""
    with run.restore() as folder:
        if not run.agreed(folder is not None and _is_whole(folder)):
            return None
        return torch.load(folder / STATE_FILE, map_location=run.device, weights_only=True)


def _is_whole(folder: Path) -> bool:
    try:
        progress = json.loads((folder / PROGRESS_FILE).read_bytes())
        if "state_sha256" not in progress or sha256_of(folder / STATE_FILE) == progress["state_sha256"]:
            return True  # checkpoints of before 2026-12 have no hash
    except (OSError, ValueError, TypeError):
        pass
    warn_once(f"the checkpoint in {folder} is damaged; the training starts again")
    return False
