"""The storage path: finished jobs as folders `<kind>/<id>` on a local disk, NFS or an object store (pyarrow.fs).

A job is finished if and only if its `record.json` exists; it is written last and names the hash of every other file.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from pyarrow import fs

from fine_core.ledger import file_bytes, sha256_of
from trainables.spec import JobSpec

RECORD_FILE = "record.json"


class StoreError(ValueError):
    """The storage path cannot be used, or holds a damaged file."""


class Store:
    """Opens a local path or a URI that pyarrow knows (s3://, gs://, hdfs://). Raises StoreError if it cannot be written."""

    def __init__(self, location: str | os.PathLike) -> None:
        location = str(location)
        try:
            if "://" in location:
                self.filesystem, self.root = fs.FileSystem.from_uri(location)
                self.location = location
            else:
                self.filesystem, self.root = fs.LocalFileSystem(), str(Path(location).expanduser().absolute())
                self.location = self.root
            self.filesystem.create_dir(self.root, recursive=True)
            self._write(f"{self.root}/.probe-{os.getpid()}", b"")
            self.filesystem.delete_file(f"{self.root}/.probe-{os.getpid()}")
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise StoreError(f"storage path {location!r} cannot be written ({reason}); name a writable folder") from error

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def _write(self, path: str, content: bytes) -> None:
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(content)

    def read_record(self, job: JobSpec) -> dict[str, Any] | None:
        """The record of a finished job, else None. An unreadable record counts as not finished."""
        try:
            with self.filesystem.open_input_stream(f"{self.root}/{job.folder}/{RECORD_FILE}") as stream:
                return json.loads(stream.readall())
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def publish(self, job: JobSpec, folder: Path, record: dict[str, Any]) -> None:
        """Store the files of `folder`, then the record with their sizes and hashes: finished from then on."""
        target = f"{self.root}/{job.folder}"
        files = {p.name: {"bytes": file_bytes(p), "sha256": sha256_of(p)} for p in sorted(folder.iterdir())}
        self.filesystem.create_dir(target, recursive=True)
        for name in files:
            fs.copy_files(str(folder / name), f"{target}/{name}", fs.LocalFileSystem(), self.filesystem)
        partial = f"{target}/.{RECORD_FILE}.partial"
        self._write(partial, json.dumps({**record, "files": files}, indent=1).encode())
        self.filesystem.move(partial, f"{target}/{RECORD_FILE}")

    def fetch(self, job: JobSpec, name: str) -> Path:
        """A local path of a finished job's file, checked against its hash. Raises StoreError if it is damaged."""
        record = self.read_record(job)
        if record is None:
            raise StoreError(f"{job.folder} is not finished in {self.location}")
        if self.is_local:
            path = Path(self.root) / job.folder / name
        else:
            path = Path(tempfile.gettempdir()) / "fine-sweeps-cache" / job.folder / f"{os.getpid()}-{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            fs.copy_files(f"{self.root}/{job.folder}/{name}", str(path), self.filesystem, fs.LocalFileSystem())
        if sha256_of(path) != record["files"][name]["sha256"]:
            raise StoreError(f"{path} is damaged (its hash differs from its record); delete {job.folder} to rebuild it")
        return path

    def latest_checkpoint(self, folder: str, progress_file: str) -> str | None:
        """The checkpoint below `folder` that got furthest, by the step in its progress file; None if there is none."""
        selector = fs.FileSelector(f"{self.root}/{folder}", recursive=True, allow_not_found=True)
        steps: dict[str, int] = {}
        for info in self.filesystem.get_file_info(selector):
            if info.base_name == progress_file:
                with self.filesystem.open_input_stream(info.path) as stream:
                    steps[info.path.rpartition("/")[0]] = json.loads(stream.readall())["step"]
        return max(steps, key=steps.get) if steps else None

    def delete_folder(self, folder: str) -> None:
        """Delete `folder` below the root if it is there."""
        if self.filesystem.get_file_info(f"{self.root}/{folder}").type == fs.FileType.Directory:
            self.filesystem.delete_dir(f"{self.root}/{folder}")
