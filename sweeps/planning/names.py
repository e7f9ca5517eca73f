"""Names of methods in tables and pictures."""

from __future__ import annotations

from collections.abc import Iterable

from trainables.specs.models import PointSpec
from trainables.specs.transfers import TransferSpec

TUNED = "tuned"  # marks points whose settings a search has found


class MethodNames:
    """What points are called beside their size.

    Where base models of several initializations are transferred, a transfer says whose it was. `tuned` holds the ids of
    points with settings found by a search: they share a name, whatever the settings are at their size.
    """

    def __init__(self, jobs: Iterable[PointSpec], tuned: Iterable[str] = ()) -> None:
        self.sources = {job.initialization.name for job in jobs if isinstance(job, TransferSpec)}
        self.tuned = frozenset(tuned)

    def of(self, job: PointSpec) -> str:
        if job.base is job:
            # Searches may have found several base models: their settings tell them apart.
            details = [f" {value} {name.replace('_', ' ')}" for name, value in job.initialization.details.items()]
            return job.initialization.name + ("".join(details) if job.id in self.tuned else "")
        name = f"{job.method} {TUNED}" if job.id in self.tuned else job.method_label
        return f"{name} from {job.initialization.name}" if len(self.sources) > 1 else name
