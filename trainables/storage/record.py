"""The record of a finished job: what it is, what it was made from, what it measured, and the files that it left."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from fine_core.evaluation.protocol import Protocol

History = list[dict[str, float]]
CHECKSUM = "record_sha256"


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """Size and hash of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """A finished job. Its JSON is written last: a job is finished if and only if its record is there.

    `spec`: the job as plain data. `made_from`: folder of an artifact -> the hashes of its files when this job read them.
    `protocol`: of a score. `unreadable_images`: files of the dataset that could not be decoded and were replaced by the next
    image of their class.
    """

    id: str
    kind: str
    label: str
    spec: dict[str, Any]
    metrics: dict[str, float]
    history: History = field(default_factory=list)
    protocol: Protocol | None = None
    made_from: dict[str, dict[str, str]] = field(default_factory=dict)
    unreadable_images: list[str] = field(default_factory=list)
    provenance: dict[str, str] = field(default_factory=dict)
    files: dict[str, StoredFile] = field(default_factory=dict)

    @property
    def hashes(self) -> dict[str, str]:
        """The hash of every file by its name."""
        return {name: file.sha256 for name, file in self.files.items()}

    def to_json(self) -> dict[str, Any]:
        content = asdict(self) | {"protocol": None if self.protocol is None else self.protocol.to_json()}
        return content | {CHECKSUM: _checksum(content)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Record:
        """Raises ValueError, KeyError or TypeError for data of another shape, or that was changed since it was written."""
        data = dict(data)
        checksum = data.pop(CHECKSUM, None)  # records of before 2026-12 have none
        if checksum is not None and checksum != _checksum(data):
            raise ValueError("its checksum differs")
        files = {name: StoredFile(**file) for name, file in data["files"].items()}
        protocol = None if data["protocol"] is None else Protocol.from_json(data["protocol"])
        return cls(**{**data, "files": files, "protocol": protocol})


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
