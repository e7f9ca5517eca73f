"""All kinds of jobs, by name."""

from __future__ import annotations

from trainables.initializations import INITIALIZATIONS
from trainables.jobs.bank import BankKind
from trainables.jobs.base import BaseKind
from trainables.jobs.inputs import FileKind, SourceKind, VaeKind
from trainables.jobs.kind import JobKind
from trainables.jobs.score import ScoreKind
from trainables.jobs.scorer import ExtractorKind
from trainables.jobs.transfer import TransferKind
from trainables.specs.base import JobSpec

JOB_KINDS: dict[str, JobKind] = {
    kind.name: kind
    for kind in (
        FileKind(),
        VaeKind(),
        SourceKind(),
        ExtractorKind(),
        *(kind for start in INITIALIZATIONS.values() for kind in start.kinds),
        BaseKind(),
        BankKind(),
        TransferKind(),
        ScoreKind(),
    )
}


def kind_of(job: JobSpec) -> JobKind:
    return JOB_KINDS[job.kind]
