"""Who works on what in a storage path: claims of live processes, on every file system that `pyarrow.fs` writes to.

No lock of the file system is used, since object stores have none and network file systems may not share theirs. A process
writes its claim, then lists all claims: it has the claim if no other live process has one on the same thing, else it withdraws.
Of two that claim at the same time at least one sees the other, so both may withdraw but never both have it. Claims of dead
processes count as nothing, so there is nothing to take over twice.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

import psutil
from pyarrow import fs

from trainables.storage.store import Store

LEASE_FOLDER = ".leases"
RENEW_S = 10.0
EXPIRE_S = 60.0  # after its last renewal a process of another machine counts as dead
WATCH_S = 25.0  # and only if it is seen to renew nothing for so long: clocks jump
POLL_S = 2.0  # between looks at what another process has claimed


class LostLease(RuntimeError):
    """Another process took this one for dead and may do its work."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process that works in a storage path. `machine` is the same for processes that see each other's process ids."""

    id: str
    host: str
    machine: str
    pid: int
    process_started_s: float
    since: str
    what: str
    is_exclusive: bool = False

    def __str__(self) -> str:
        return f"{self.what} on {self.host}, process {self.pid}, since {self.since}"

    @property
    def is_here(self) -> bool:
        return self.machine == _machine()

    @property
    def is_running(self) -> bool:
        """Whether the process, of this machine, is there."""
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.process_started_s) < 1
            return is_same and process.status() != psutil.STATUS_ZOMBIE  # dead, and its parent has not asked how it ended
        except psutil.NoSuchProcess:
            return False


def _machine() -> str:
    """This boot of this host, and the space of process ids that the process is in (a container has its own)."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()}-{psutil.boot_time():.0f}"


class Leases:
    """This process's claims in a storage path, renewed by a thread until `close`."""

    def __init__(self, store: Store, what: str) -> None:
        self.store, self.filesystem, self.folder = store, store.filesystem, f"{store.root}/{LEASE_FOLDER}"
        process = psutil.Process()
        self.owner = Owner(
            id=uuid.uuid4().hex[:12],
            host=socket.gethostname(),
            machine=_machine(),
            pid=process.pid,
            process_started_s=process.create_time(),
            since=datetime.now().astimezone().isoformat(timespec="seconds"),
            what=what,
        )
        self.claims: set[str] = set()
        self.is_lost = False
        self._renewed_at: dict[str, tuple[int, float]] = {}  # of other owners: the last renewal, and when it was seen first
        self._closed = threading.Event()
        self.filesystem.create_dir(self.folder, recursive=True)
        self._write_owner()
        threading.Thread(target=self._renew, name="leases", daemon=True).start()

    # The owner's file.

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def _write_owner(self) -> None:
        self.store.write_json(self.folder, f"owner.{self.owner.id}", asdict(self.owner))

    def _renew(self) -> None:
        while not self._closed.wait(RENEW_S):
            with suppress(OSError):  # a storage that is away for a while; too long, and the file is gone
                if self.filesystem.get_file_info(self._path(f"owner.{self.owner.id}")).type != fs.FileType.File:
                    self.is_lost = True
                    return
                self._write_owner()

    def check(self) -> None:
        """Raises LostLease if another process has taken this one for dead."""
        if self.is_lost:
            raise LostLease("another process took this one for dead, as it was not heard of for a minute")

    def close(self) -> None:
        """Give up all claims."""
        self._closed.set()
        with suppress(OSError):
            for name in tuple(self.claims):
                self.release(name)
            self._delete(f"owner.{self.owner.id}")

    def _delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(self._path(name))

    # Other owners.

    def _files(self) -> dict[str, fs.FileInfo]:
        selector = fs.FileSelector(self.folder, allow_not_found=True)
        return {info.base_name: info for info in self.filesystem.get_file_info(selector)}

    def others(self) -> list[Owner]:
        """Live processes that work in the storage path, this one left out."""
        return list(self._others(self._files()).values())

    def _others(self, files: dict[str, fs.FileInfo]) -> dict[str, Owner]:
        found = {}
        for name, info in files.items():
            kind, _, owner_id = name.partition(".")
            if kind == "owner" and owner_id != self.owner.id:
                owner = self._read(name, owner_id)
                if owner is not None and self._is_alive(owner, info.mtime_ns):
                    found[owner_id] = owner
                elif owner is not None:
                    self._bury(owner_id, files)
        return found

    def _read(self, name: str, owner_id: str) -> Owner | None:
        """None for a file that is gone. A damaged one is of an owner that counts as dead once it renews nothing."""
        try:
            with self.filesystem.open_input_stream(self._path(name)) as stream:
                return Owner(**json.loads(stream.readall()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            where, when = "another machine", "some time"
            return Owner(id=owner_id, host=where, machine="", pid=0, process_started_s=0.0, since=when, what="a process")

    def _is_alive(self, owner: Owner, renewed_ns: int) -> bool:
        if owner.is_here:
            return owner.is_running
        seen, since = self._renewed_at.get(owner.id, (None, 0.0))
        if seen != renewed_ns:
            self._renewed_at[owner.id] = (renewed_ns, time.monotonic())
            return True
        # Both times are the storage's own. A process that has just looked knows its own renewal to be fresh.
        own_ns = self.filesystem.get_file_info(self._path(f"owner.{self.owner.id}")).mtime_ns or renewed_ns
        return (own_ns - renewed_ns) / 1e9 < EXPIRE_S or time.monotonic() - since < WATCH_S

    def _bury(self, owner_id: str, files: dict[str, fs.FileInfo]) -> None:
        """Delete what a dead process has left."""
        for name in files:
            if name.endswith(f".{owner_id}"):
                self._delete(name)

    # Claims.

    def claim(self, name: str) -> Owner | None:
        """Claim a thing by its name. Returns None if it is this process's now, else the live process that has it.

        Raises LostLease.
        """
        self.check()
        if name in self.claims:
            return None
        if (holder := self._holder(name)) is not None:
            return holder
        own = self._path(f"claim.{name}.{self.owner.id}")
        with self.filesystem.open_output_stream(own) as stream:
            stream.write(b"-")  # some object stores keep no empty files
        if (holder := self._holder(name)) is not None:
            self.filesystem.delete_file(own)
            return holder
        self.claims.add(name)
        return None

    def _holder(self, name: str) -> Owner | None:
        files = self._files()
        start = f"claim.{name}."
        claimants = {file.removeprefix(start) for file in files if file.startswith(start)} - {self.owner.id}
        if not claimants:
            return None
        others = self._others(files)
        return next((others[id] for id in claimants if id in others), None)

    def release(self, name: str) -> None:
        """Give up a claim."""
        self.claims.discard(name)
        self._delete(f"claim.{name}.{self.owner.id}")

    def wait_for(self, name: str, say: Callable[[Owner], None]) -> bool:
        """Claim a thing as soon as nobody else has it; `say` is called once for each process that is waited for.

        Returns whether it had to wait.
        """
        return self._wait(lambda: self.claim(name), say)

    def wait_until_shared(self, say: Callable[[Owner], None]) -> bool:
        """Return once no other process has the storage path to itself."""
        return self._wait(lambda: next((owner for owner in self.others() if owner.is_exclusive), None), say)

    def wait_until_alone(self, say: Callable[[Owner], None]) -> None:
        """Return once no other process works in the storage path; those that start from then on wait for this one."""
        alone = False
        while not alone:
            self._wait(lambda: next(iter(self.others()), None), say)
            self._set_exclusive(True)
            alone = not self.others()
            self._set_exclusive(alone)

    def _set_exclusive(self, is_exclusive: bool) -> None:
        self.owner = replace(self.owner, is_exclusive=is_exclusive)
        self._write_owner()

    def _wait(self, holder_of: Callable[[], Owner | None], say: Callable[[Owner], None]) -> bool:
        said: set[str] = set()
        while (holder := holder_of()) is not None:
            if holder.id not in said:
                said.add(holder.id)
                say(holder)
            time.sleep(POLL_S * random.uniform(0.5, 1.0))  # not in step with another that waits
        return bool(said)


@contextmanager
def working(store: Store, what: str) -> Iterator[Leases]:
    """A process that works in a storage path, for as long as the block lasts."""
    leases = Leases(store, what)
    try:
        yield leases
    finally:
        leases.close()
