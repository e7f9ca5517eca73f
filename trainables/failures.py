"""Failures as data: what kind of failure ended a job, why, and where its traceback lies."""

from __future__ import annotations

import traceback
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import torch

from fine_core.evaluation.finite import NotFinite
from trainables.storage.store import Store, StoreError
from trainables.training.loop import TrainingDiverged

LOG_FOLDER = "logs"


class FailureKind(StrEnum):
    """Kinds of failures. Only what died is tried again: the others would fail again."""

    DIVERGED = "diverged"
    BAD_INPUT = "bad input"
    OUT_OF_MEMORY = "out of memory"
    LOST_ARTIFACT = "lost artifact"
    DIED = "died"

    @property
    def is_retried(self) -> bool:
        return self is FailureKind.DIED


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a job failed. `log`: the file with the whole traceback, empty if there is none."""

    kind: FailureKind
    reason: str
    log: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}" + (f" (log: {self.log})" if self.log else "")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Failure:
        return cls(kind=FailureKind(data["kind"]), reason=data["reason"], log=data["log"])


def kind_of(error: BaseException) -> FailureKind:
    """The kind of failure that an exception stands for."""
    if isinstance(error, TrainingDiverged | NotFinite):
        return FailureKind.DIVERGED
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return FailureKind.OUT_OF_MEMORY
    if isinstance(error, StoreError):
        return FailureKind.LOST_ARTIFACT
    return FailureKind.BAD_INPUT if isinstance(error, ValueError) else FailureKind.DIED


def log_path(job_id: str) -> str:
    """A job's log below the store's root."""
    return f"{LOG_FOLDER}/{job_id}.log"


def last_line(text: str) -> str:
    """The last line that says something: of a traceback, what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "ended without a result"


def failure_of(error: BaseException, job_id: str, store: Store) -> Failure:
    """The failure that an exception stands for, with its traceback written to the job's log."""
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    if kind_of(error) is FailureKind.DIED:
        reason = f"{type(error).__name__}: {reason}"
    log = write_log(job_id, "".join(traceback.format_exception(error)), store)
    return Failure(kind=kind_of(error), reason=reason, log=log)


def failure_of_text(text: str, job_id: str, store: Store) -> Failure:
    """The failure of a process that died and left only a text, such as Ray's account of it."""
    return Failure(kind=FailureKind.DIED, reason=last_line(text), log=write_log(job_id, text, store))


def write_log(job_id: str, text: str, store: Store) -> str:
    """Write a job's log; returns its whole path. A store that takes no log leaves an empty path: the failure comes first."""
    try:
        store.write_text(log_path(job_id), text)
    except OSError:
        return ""
    return f"{store.location}/{log_path(job_id)}"
