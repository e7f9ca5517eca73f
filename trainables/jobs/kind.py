"""The interface of job kinds: everything that is known of a job besides its identity, which is its spec."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from fine_core.dit import DiT
from trainables.jobs.context import JobContext, Result
from trainables.jobs.work import Work
from trainables.storage.store import Store


class Workers(StrEnum):
    """How many workers a job can use: one, as many as every trial has, or the whole cluster."""

    ONE = "one"
    TRIAL = "trial"
    ALL = "all"


class Role(StrEnum):
    """What a kept file is for: to initialize further models, or to serve a point."""

    INITIALIZE = "initialize"
    SERVE = "serve"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The file of a job that is kept for good. `seconds`, `steps`: the metrics that say what it took to make."""

    file: str
    role: Role
    seconds: str
    steps: str | None = None


class JobKind(ABC):
    """One kind of job. `name` is its specs' kind; `unit` is what its progress counts; `is_score` marks scores of models;
    `is_passing` what nobody reads again once all that needs it is done."""

    name: ClassVar[str]
    unit: ClassVar[str] = "steps"
    workers: ClassVar[Workers] = Workers.TRIAL
    kept: ClassVar[Kept | None] = None
    is_score: ClassVar[bool] = False
    is_passing: ClassVar[bool] = False

    @abstractmethod
    def run(self, job: Any, context: JobContext) -> Result:
        """Compute a job. Rank 0 leaves its files in the context's folder."""

    def stage(self, job: Any) -> str:
        """The stage of a sweep that it belongs to, for people."""
        return self.name

    def work(self, job: Any) -> Work:
        """What it computes, predicted."""
        return Work()

    def result_bytes(self, job: Any) -> int:
        """Bytes of the files that it stores, predicted; 0 for small ones."""
        return 0

    def runs_inline(self, job: Any) -> bool:
        """Whether it never needs a worker group."""
        return False

    def serve(self, job: Any, store: Store) -> DiT:
        """The model that a finished job has made, to sample from. Raises StoreError or CheckpointError."""
        raise TypeError(f"a {self.name} makes no model")
