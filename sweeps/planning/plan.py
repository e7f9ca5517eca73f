"""From a grid to a plan: unique artifacts by stage, and trials. Computes nothing."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sweeps.planning.costs import estimated_core_s
from sweeps.planning.grid import GridSpec
from sweeps.planning.names import TUNED, MethodNames
from sweeps.planning.settings import tuned_for_size
from trainables.specs.base import JobSpec
from trainables.specs.models import (
    DecomposedLearngeneSpec,
    FineSpec,
    LearngeneSpec,
    PointSpec,
    TrialSpec,
)
from trainables.specs.scorers import ExtractorSpec
from trainables.specs.transfers import BankSpec, CurveSpec, TransferSpec
from trainables.storage.store import Store

Job = TypeVar("Job", bound=JobSpec)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The jobs of a sweep by stage; each stage needs only what those before it make.

    `source`: artifacts that base models share; `decompose`: the learngene of a given model, which they score; `base`: base
    models; `bank`: what they remember; `transfer`: base models taken to the target; `curve`: chain-of-forgetting curves of
    transfers.
    """

    source: tuple[JobSpec, ...]
    decompose: tuple[DecomposedLearngeneSpec, ...] = ()
    base: tuple[TrialSpec, ...]
    bank: tuple[BankSpec, ...] = ()
    transfer: tuple[TransferSpec, ...] = ()
    curve: tuple[CurveSpec, ...] = ()
    tuned: frozenset[str] = frozenset()  # ids of the points whose settings a search has found

    @property
    def names(self) -> MethodNames:
        """What its points are called."""
        return MethodNames(self.points, self.tuned)

    @property
    def points(self) -> tuple[PointSpec, ...]:
        """The jobs that have a score."""
        return (*self.base, *self.transfer)

    @property
    def identity(self) -> list[str]:
        """What makes it this sweep: its points, in whatever order they were asked for."""
        return sorted(job.id for job in (*self.points, *self.curve))

    @property
    def sweep_id(self) -> str:
        """A hash: the same grid is the same sweep."""
        return hashlib.sha256(" ".join(self.identity).encode()).hexdigest()[:10]

    @property
    def stages(self) -> dict[str, tuple[JobSpec, ...]]:
        """The stages that have jobs, in order."""
        names = ("source", "decompose", "base", "bank", "transfer", "curve")
        stages = {name: getattr(self, name) for name in names}
        return {name: jobs for name, jobs in stages.items() if jobs}

    @property
    def jobs(self) -> tuple[JobSpec, ...]:
        """The jobs of all stages, in the order of the stages."""
        return tuple(job for jobs in self.stages.values() for job in jobs)

    @property
    def labels(self) -> dict[str, str]:
        """A label for each job's id. Base models of one size that differ in their sigma steps say so, and tuned points."""
        count = Counter(job.label for job in self.jobs)
        labels = {job.id: job.label + (_sigma_suffix(job) if count[job.label] > 1 else "") for job in self.jobs}
        return {id: f"{label}, {TUNED}" if id in self.tuned else label for id, label in labels.items()}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a store holds of a plan, as ids: finished jobs, and others that are made and only to be scored in another way."""

    finished: frozenset[str]
    made: frozenset[str]


def find_jobs(plan: Plan, store: Store) -> Found:
    """Looks at records and whether files are there, not at what is in these."""
    return found_beside([job for job in plan.jobs if store.read_record(job) is None], plan, store)


def found_beside(missing: Sequence[JobSpec], plan: Plan, store: Store) -> Found:
    """The same where it is known which jobs have no record."""
    made = frozenset(job.id for job in missing if store.twin(job, intact=False) is not None)
    return Found(finished=frozenset(job.id for job in plan.jobs) - {job.id for job in missing}, made=made)


def plan_grid(grid: GridSpec) -> Plan:
    """Expand a grid. Largest models come first, so that no long trial is left over at the end. Raises ValueError."""
    points = [(method, *size) for method in grid.methods for size in grid.sizes_of(method).values()]
    bases = [grid.trial(*point, seed) for point in points for seed in grid.seeds]
    transfers = [] if grid.transfer is None else [transfer for base in bases for transfer in grid.transfer.transfers(base)]
    return plan_jobs(bases, transfers, tuned=tuned_transfers(grid))


def tuned_transfers(grid: GridSpec) -> list[TransferSpec]:
    """What a search has found, at every size and seed of the grid."""
    if grid.transfer is None:
        return []
    return [
        grid.transferred(found.method, found.settings, initialization=name, depth=depth, width=width, seed=seed)
        for name in grid.transfer.initializations
        for size, (depth, width) in grid.sizes_of(name).items()
        for found in tuned_for_size(grid.transfer.tuned, name, size)
        for seed in grid.seeds
    ]


def plan_jobs(
    bases: Iterable[TrialSpec],
    transfers: Iterable[TransferSpec],
    curves: Iterable[CurveSpec] = (),
    *,
    tuned: Sequence[TransferSpec] = (),
) -> Plan:
    """The plan of these points and of all that they need. `tuned`: further transfers, whose settings a search has found; those
    among them, and among their base models, that are not points already are called so."""
    bases, transfers = list(bases), list(transfers)
    found = {job.id for t in tuned for job in (t.base, t)} - {job.id for job in (*bases, *transfers)}
    base, transfer = _unique([*bases, *(t.base for t in tuned)]), _unique([*transfers, *tuned])
    curve = _unique(curves)
    bank = _unique(job.bank for job in transfer if job.bank is not None)
    needs = {need.id: need for job in (*base, *transfer) for need in job.needs}
    decompose = tuple(need for need in needs.values() if isinstance(need, DecomposedLearngeneSpec))
    source = tuple(n for n in needs.values() if isinstance(n, ExtractorSpec | LearngeneSpec) and n not in decompose)
    return Plan(
        source=source, decompose=decompose, base=base, bank=bank, transfer=transfer, curve=curve, tuned=frozenset(found)
    )


def _unique(jobs: Iterable[Job]) -> tuple[Job, ...]:
    """Each job once, the longest first."""
    return tuple(sorted({job.id: job for job in jobs}.values(), key=lambda job: -estimated_core_s(job)))


def _sigma_suffix(job: JobSpec) -> str:
    base = job if isinstance(job, TrialSpec) else getattr(job, "base", None)
    return f", {base.initialization.sigma_steps} sigma steps" if base and isinstance(base.initialization, FineSpec) else ""
