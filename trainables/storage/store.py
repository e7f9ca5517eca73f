"""The storage path: finished jobs as folders `<kind>/<id>` on a local disk, NFS or an object store (pyarrow.fs).

A job is finished if and only if its `record.json` exists; it is written last and names the hash of every other file.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyarrow import fs

from fine_core.files import file_bytes, sha256_of
from fine_core.text import has_login
from trainables.specs.base import JobSpec
from trainables.specs.from_record import OldRecord, job_from_record
from trainables.storage.files import PROGRESS_FILE, RECORD_FILE, STATE_FILE
from trainables.storage.record import Record, StoredFile
from trainables.storage.warning import warn_once

CHECKPOINT_FOLDER = "tune"  # Ray Tune's: <attempt>/<run id>.<job id>.<kind>/checkpoint_*
WORKER_GROUP_FOLDER = "train"  # Ray Train's: <run id>/checkpoint_*
OLD_KINDS = ("trial", "rung", "curve")  # folders of jobs as versions before this one kept them
READERS = 16  # threads: on an object store each record takes a round trip


DAMAGED = (KeyError, TypeError, ValueError, AttributeError)  # what reading a file of another shape raises


class StoreError(ValueError):
    """The storage path cannot be used, or holds a damaged file."""


class Store:
    """Opens a local path or a URI that pyarrow knows (s3://, gs://, hdfs://). Raises StoreError for one it does not know."""

    def __init__(self, location: str | os.PathLike[str]) -> None:
        location = str(location)
        if has_login(location):
            raise StoreError(
                "the storage path holds a password, which would stand in files and logs; "
                "leave it out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY on all nodes"
            )
        try:
            if "://" in location:
                self.filesystem, self.root = fs.FileSystem.from_uri(location)
                self.location = location
            else:
                self.filesystem, self.root = fs.LocalFileSystem(), str(Path(location).expanduser().absolute())
                self.location = self.root
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unusable(location, error) from error

    @staticmethod
    def _unusable(location: str, error: Exception) -> StoreError:
        reason = str(error).splitlines()[0]
        return StoreError(f"storage path {location!r} cannot be written ({reason}); name a writable folder")

    def check_writable(self) -> None:
        """Raises StoreError if nothing can be written here. Called once, before a sweep starts."""
        probe = f"{self.root}/.probe-{uuid.uuid4().hex}"
        try:
            self.filesystem.create_dir(self.root, recursive=True)
            self._write(probe, b"")
            self.filesystem.delete_file(probe)
        except OSError as error:
            raise self._unusable(self.location, error) from error

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def _write(self, path: str, content: bytes) -> None:
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(content)

    def write_text(self, path: str, text: str) -> None:
        """Write a text file below the root. Raises OSError."""
        folder = f"{self.root}/{path}".rpartition("/")[0]
        self.filesystem.create_dir(folder, recursive=True)
        self._write(f"{self.root}/{path}", text.encode())

    def read_record(self, job: JobSpec) -> Record | None:
        """The record of a finished job, else None. A damaged record gives a warning and counts as not finished.

        Raises StoreError if the storage cannot read the record's file.
        """
        path = f"{self.root}/{job.folder}/{RECORD_FILE}"
        content = self._read_bytes(path)
        if content is None:
            return None
        try:
            return Record.from_json(json.loads(content))
        except DAMAGED:
            warn_once(f"{path} is damaged; {job.folder} is made again")
            return None

    def record(self, job: JobSpec) -> Record:
        """The record of a job that must be finished. Raises StoreError if it is not."""
        found = self.read_record(job)
        if found is None:
            raise StoreError(f"{job.folder} is not finished in {self.location}")
        return found

    def _read_json(self, path: str) -> Any:
        """None for a file that is not there or no JSON."""
        with suppress(ValueError):
            return json.loads(self._read_bytes(path) or "")
        return None

    def _read_bytes(self, path: str) -> bytes | None:
        """None for a file that is not there. Raises StoreError for one that may not be read."""
        try:
            with self.filesystem.open_input_stream(path) as stream:
                return stream.readall()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error}") from error

    def records(self, kind: str) -> Iterator[tuple[JobSpec, Record]]:
        """All finished jobs of a kind with their records, but those of another version (see `count_old_records`)."""
        for content in self._record_contents(kind):
            with suppress(OldRecord, *DAMAGED):
                yield job_from_record(content), Record.from_json(content)

    def _record_contents(self, kind: str, *, without: frozenset[str] = frozenset()) -> Iterator[Any]:
        selector = fs.FileSelector(f"{self.root}/{kind}", allow_not_found=True)
        infos = sorted(self.filesystem.get_file_info(selector), key=lambda info: info.path)
        paths = [f"{info.path}/{RECORD_FILE}" for info in infos if info.base_name not in without]
        with ThreadPoolExecutor(max_workers=READERS) as pool:
            yield from (content for content in pool.map(self._read_json, paths) if content is not None)

    def count_old_records(self, kinds: Iterable[str], known: frozenset[str]) -> dict[str, int]:
        """How many records of each kind this version cannot use. `kinds`: those of today; `known`: ids that need no look."""
        counts: dict[str, int] = {}
        for kind in (*kinds, *OLD_KINDS):
            for content in self._record_contents(kind, without=known):
                try:
                    job_from_record(content)
                except OldRecord:
                    counts[kind] = counts.get(kind, 0) + 1
        return counts

    def publish(self, job: JobSpec, folder: Path, record: Record) -> None:
        """Store the files of `folder`, then the record with their sizes and hashes: finished from then on."""
        target = f"{self.root}/{job.folder}"
        files = {p.name: StoredFile(bytes=file_bytes(p), sha256=sha256_of(p)) for p in sorted(folder.iterdir())}
        self.filesystem.create_dir(target, recursive=True)
        for name in files:
            fs.copy_files(str(folder / name), f"{target}/{name}", fs.LocalFileSystem(), self.filesystem)
        self.write_json(target, RECORD_FILE, replace(record, files=files).to_json())

    def hashes_of(self, jobs: Iterable[JobSpec]) -> dict[str, dict[str, str]]:
        """The file hashes of finished jobs by folder: what a job that is made from them is bound to."""
        return {job.folder: self.record(job).hashes for job in jobs}

    def is_finished(self, job: JobSpec) -> bool:
        """Whether a job has a record, and was made from the artifacts that are there now."""
        return self.read_record(job) is not None and self.is_bound(job)

    def is_bound(self, job: JobSpec) -> bool:
        """Whether the artifacts that a finished job was made from are still the same bytes, as far as they are there."""
        record = self.record(job)
        for need in job.needs:
            found = self.read_record(need)
            if found is not None and record.made_from.get(need.folder, found.hashes) != found.hashes:
                return False
        return True

    def is_intact(self, job: JobSpec) -> bool:
        """Whether all files of a finished job are there and are what they were."""
        record = self.record(job)
        try:
            for name in record.files:
                self.fetch(job, name)
        except (StoreError, OSError):
            return False
        return True

    def discard(self, job: JobSpec) -> None:
        """Make a finished job an unfinished one. Its files stay until it is computed again."""
        self.filesystem.delete_file(f"{self.root}/{job.folder}/{RECORD_FILE}")

    def write_json(self, folder: str, name: str, content: dict[str, Any]) -> None:
        """Write JSON into a folder, given with the root, so that nobody ever reads a part of it."""
        partial = f"{folder}/.{name}.{uuid.uuid4().hex}.partial"
        self._write(partial, json.dumps(content, indent=1).encode())
        self.filesystem.move(partial, f"{folder}/{name}")

    def fetch(self, job: JobSpec, name: str) -> Path:
        """A local path of a finished job's file, checked against its hash. Raises StoreError if it is damaged."""
        files = self.record(job).files
        if name not in files:
            raise StoreError(f"{job.folder} has no file {name}; delete {job.folder} to have it made again")
        sha256 = files[name].sha256
        if self.is_local:
            path = Path(self.root) / job.folder / name
        else:
            path = Path(tempfile.gettempdir()) / "fine-sweeps-cache" / sha256 / name
            if not path.exists() or sha256_of(path) != sha256:
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f"{os.getpid()}.partial")
                try:
                    fs.copy_files(f"{self.root}/{job.folder}/{name}", str(partial), self.filesystem, fs.LocalFileSystem())
                except FileNotFoundError as error:
                    raise StoreError(f"{job.folder}/{name} is gone; delete {job.folder} to have it made again") from error
                partial.rename(path)
        if not path.is_file():
            raise StoreError(f"{path} is gone; delete {job.folder} to have it made again")
        if sha256_of(path) != sha256:
            raise StoreError(f"{path} is damaged (its hash differs from its record); delete {job.folder} to have it made again")
        return path

    def latest_checkpoint(self, job: JobSpec) -> str | None:
        """The whole checkpoint of a job's training that got furthest, over all attempts below `CHECKPOINT_FOLDER`, or None.

        A checkpoint is whole if its state has the size that its progress file says: the copy of it may have been cut off.
        """
        steps: dict[str, int] = {}
        for info in self._all_files(CHECKPOINT_FOLDER):
            folder, _, name = info.path.rpartition("/")
            if name == PROGRESS_FILE and _run_id(folder.split("/")[-2]) == job.run_id:
                with suppress(*DAMAGED):
                    progress = self._read_json(info.path)
                    state = self.filesystem.get_file_info(f"{folder}/{STATE_FILE}")
                    if state.size == progress["state_bytes"]:
                        steps[folder] = progress["step"]
        return max(steps, key=lambda folder: steps[folder]) if steps else None

    def delete_checkpoints(self, job: JobSpec) -> None:
        """Delete what all attempts at a job's training have left, once it is over."""
        for path, _ in self.checkpoint_folders([job]):
            self.delete(path)

    def checkpoint_folders(self, jobs: Iterable[JobSpec]) -> list[tuple[str, int]]:
        """Folders below the root that hold checkpoints of these jobs' training, and the bytes in them."""
        run_ids, found = {job.run_id for job in jobs}, []
        for top in (CHECKPOINT_FOLDER, WORKER_GROUP_FOLDER):
            infos = self._all_files(top)
            folders = [i.path for i in infos if i.type == fs.FileType.Directory and _run_id(i.base_name) in run_ids]
            for folder in folders:
                size = sum(i.size for i in infos if i.type == fs.FileType.File and i.path.startswith(f"{folder}/"))
                found.append((folder.removeprefix(f"{self.root}/"), size))
        return found

    def used_bytes(self) -> int:
        """Bytes of all files in the storage path."""
        return sum(info.size for info in self._all_files("") if info.type == fs.FileType.File)

    def size_of(self, path: str) -> int | None:
        """Bytes of a file below the root; None if there is none."""
        info = self.filesystem.get_file_info(f"{self.root}/{path}")
        return info.size if info.type == fs.FileType.File else None

    def delete(self, path: str) -> None:
        """Delete a file or a folder below the root, if it is there."""
        kind = self.filesystem.get_file_info(f"{self.root}/{path}").type
        if kind == fs.FileType.Directory:
            self.filesystem.delete_dir(f"{self.root}/{path}")
        elif kind == fs.FileType.File:
            self.filesystem.delete_file(f"{self.root}/{path}")

    def _all_files(self, folder: str) -> list[fs.FileInfo]:
        selector = fs.FileSelector(f"{self.root}/{folder}".rstrip("/"), recursive=True, allow_not_found=True)
        return self.filesystem.get_file_info(selector)


def checkpoint_folder_name(job: JobSpec) -> str:
    """A job's folder in an attempt below `CHECKPOINT_FOLDER`."""
    return f"{job.run_id}.{job.id}.{job.kind}"


def _run_id(folder_name: str) -> str:
    return folder_name.partition(".")[0]
