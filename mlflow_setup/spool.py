"""Pending writes, kept in a file until the store has accepted them."""

from __future__ import annotations

import fcntl
import json
import logging
import threading
import zlib
from collections import deque
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, BinaryIO

logger = logging.getLogger("fine-sweeps")


@dataclass(frozen=True, kw_only=True)
class Write:
    """One write: plain data with its own time. It may be sent late, by another process, or twice."""

    action: str
    trial_id: str | None  # None: the sweep's own run
    time_ms: int
    values: dict[str, Any]


class Spool:
    """A persistent queue of writes: any thread appends, one thread takes.

    The file has one line of JSON per write, and lines with the number of writes that the store has accepted. A line that a
    crash cut off is ignored. If the file cannot be used (full disk, the same sweep in another process), writes are kept in
    memory only.

    The lock is a plain one: Ctrl-C inside a `with` releases it, which `threading.Condition` does not guarantee.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.pending: deque[tuple[int, Write]] = deque()
        self.last_number = self.num_damaged = 0
        self.file: BinaryIO | None = None
        try:
            self._open()
        except OSError as error:
            self._keep_in_memory(error)

    @property
    def is_durable(self) -> bool:
        return self.file is not None

    def __len__(self) -> int:
        return len(self.pending)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+b", buffering=0)  # unbuffered: every line is one system call
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise
        file.seek(0)
        content = file.read()
        self._load(content)
        self.file = file
        if content and not content.endswith(b"\n"):
            self._append(b"\n")

    def _load(self, content: bytes) -> None:
        for line in content.splitlines():
            try:
                entry = _checked(line)
                if "done" in entry:
                    self._forget(entry["done"])
                else:
                    self.last_number = entry.pop("number")
                    self.pending.append((self.last_number, Write(**entry)))
            except (ValueError, KeyError, TypeError, AttributeError):  # a line that is cut off, or of another version
                self.num_damaged += bool(line)
        if self.num_damaged:
            logger.warning("damaged lines of %s are left out: %d", self.path, self.num_damaged)

    def append(self, write: Write) -> None:
        with self.lock:
            self.last_number += 1
            self.pending.append((self.last_number, write))
            self._append(_line({"number": self.last_number, **vars(write)}))

    def writes(self) -> list[Write]:
        """All writes that the store has not accepted yet."""
        with self.lock:
            return [write for _, write in self.pending]

    def head(self, limit: int, together: str) -> list[Write]:
        """The first write. If its action is `together`, also the same action's writes right after it; at most `limit`."""
        with self.lock:
            first = [write for _, write in islice(self.pending, limit)]
        return list(takewhile(lambda write: write.action == together, first)) or first[:1]

    def done(self, count: int) -> None:
        """Remove the first `count` writes: the store has accepted them."""
        with self.lock:
            number = self.pending[count - 1][0]
            self._forget(number)
            # Usually nothing is left and the file is emptied, so it stays small in long sweeps.
            self._append(_line({"done": number}) if self.pending else b"")

    def close(self) -> None:
        """Close the spool. An empty spool deletes its file."""
        with self.lock:
            if self.file is not None:
                if not self.pending:
                    self.path.unlink(missing_ok=True)
                self.file.close()
                self.file = None

    def _forget(self, number: int) -> None:
        while self.pending and self.pending[0][0] <= number:
            self.pending.popleft()

    def _append(self, line: bytes) -> None:
        """Append a line; an empty line empties the file."""
        if self.file is None:
            return
        try:
            if not line:
                self.file.truncate(0)
            elif self.file.write(line) != len(line):
                raise OSError(f"{self.path} took part of a line; is the disk full?")
        except OSError as error:
            self.file.close()
            self.file = None
            self._keep_in_memory(error)

    def _keep_in_memory(self, error: OSError) -> None:
        reason = "another process runs this sweep" if isinstance(error, BlockingIOError) else str(error)
        logger.warning("MLflow records are kept in memory until they are written, not in %s (%s)", self.path, reason)


def _line(entry: dict[str, Any]) -> bytes:
    content = json.dumps(entry).encode()
    return f"{zlib.crc32(content):08x} ".encode() + content + b"\n"


def _checked(line: bytes) -> dict[str, Any]:
    """Raises ValueError for a line that is not what was written."""
    if line.startswith(b"{"):  # versions before 2026-12 wrote no checksum
        return json.loads(line)
    checksum, _, content = line.partition(b" ")
    if int(checksum, 16) != zlib.crc32(content):
        raise ValueError("damaged")
    return json.loads(content)
