"""Specs back from the records that hold them as JSON. A spec that comes back has the id that it had."""

from __future__ import annotations

from typing import Any

import trainables.specs.scores  # noqa: F401  (registers every type tag)
from trainables.specs.base import JobSpec
from trainables.specs.identity import from_json


class OldRecord(ValueError):
    """A record of another version of the specs, whose numbers may be others."""


def job_from_record(record: dict[str, Any]) -> JobSpec:
    """The job that a record belongs to. Raises OldRecord for one that this version cannot use."""
    try:
        if "type" not in record["spec"]:
            raise ValueError("a spec without a type tag")
        job = from_json(JobSpec, record["spec"])
    except (KeyError, TypeError, ValueError) as error:
        raise OldRecord(str(error)) from error
    if not isinstance(job, JobSpec) or job.id != record["id"]:
        raise OldRecord(f"its spec has the id {getattr(job, 'id', None)}, the record says {record['id']}")
    return job
