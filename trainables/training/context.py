"""Surroundings of the training loop: rank, checkpoint restore and progress reporting."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from fine_core.evaluation.finite import NotFinite
from trainables.training.computing import Computing


def first_gpu(share: float = 1.0) -> torch.device:
    """The GPU that this process was given, of whose memory it takes a share at most. Raises ValueError where torch cannot use
    it."""
    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise ValueError(
            f"this worker was given a GPU that PyTorch cannot use (it is built for {built}): is the driver too old? "
            "Without it: --gpus-per-worker 0"
        )
    if share < 1:
        torch.cuda.set_per_process_memory_fraction(share, 0)
    return torch.device("cuda", 0)


class RunContext(ABC):
    """One of `num_workers` equal workers of a job. Rank 0 saves and scores; all ranks call every method alike.

    `computing` is how its steps are computed; `gpu_share` is how much of its GPU's memory is its own.
    """

    rank: int = 0
    num_workers: int = 1
    device: torch.device = torch.device("cpu")
    computing: Computing = Computing()
    gpu_share: float = 1.0

    @abstractmethod
    def restore(self) -> AbstractContextManager[Path | None]:
        """The folder of the latest checkpoint, or None at a fresh start."""

    @abstractmethod
    def report(self, metrics: dict[str, Any], checkpoint: Path | None) -> None:
        """Report progress. `checkpoint` (rank 0 only): a folder to keep; the caller deletes it afterwards."""

    def gather(self, item: Any) -> list[Any]:
        """The items of all ranks in order, on every rank."""
        if self.num_workers == 1:
            return [item]
        items: list[Any] = [None] * self.num_workers
        torch.distributed.all_gather_object(items, item)
        return items

    def gather_to_first(self, item: Any) -> list[Any]:
        """The items of all ranks in order, on rank 0; nothing on the others."""
        if self.num_workers == 1:
            return [item]
        items: list[Any] | None = [None] * self.num_workers if self.rank == 0 else None
        torch.distributed.gather_object(item, items)
        return items or []

    def agreed(self, item: Any) -> Any:
        """Rank 0's item, on every rank. Ranks may read different things from the store."""
        return self.gather(item)[0]

    def raise_together(self, problem: str | None, error: type[Exception] = NotFinite) -> None:
        """Raise on every rank if any rank has a problem: one that raised alone would leave the others waiting."""
        problems = [one for one in self.gather(problem) if one is not None]
        if problems:
            raise error(problems[0])

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The element-wise mean over all ranks, on every rank."""
        if self.num_workers > 1:
            torch.distributed.all_reduce(values)
        return values / self.num_workers


class LocalContext(RunContext):
    """One process without Ray; the latest checkpoint is kept in `folder`. Used by tests and on bare GPU machines."""

    def __init__(self, folder: str | os.PathLike, *, device: str = "cpu") -> None:
        self.folder, self.device = Path(folder), torch.device(device)
        self.reports: list[dict[str, Any]] = []

    def restore(self) -> AbstractContextManager[Path | None]:
        return nullcontext(self.folder if self.folder.exists() else None)

    def report(self, metrics: dict[str, Any], checkpoint: Path | None) -> None:
        self.reports.append(metrics)
        if checkpoint is not None:
            incoming = self.folder.with_name(self.folder.name + ".incoming")
            shutil.rmtree(incoming, ignore_errors=True)
            shutil.copytree(checkpoint, incoming)
            shutil.rmtree(self.folder, ignore_errors=True)
            incoming.rename(self.folder)
