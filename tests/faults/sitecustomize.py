"""Kills processes at chosen calls, one after the other: on the path of a command, Python imports this in all its processes.

FAULTS is `module:function:count:victim`, several with spaces between them; one is armed once those before it have happened.
The armed call number `count` of that function, in whichever process comes to it first, sends SIGKILL to the process it`self`,
to the only Tune `trial`, or to the `driver`, whose pid is in the file FAULT_DRIVER; or finds no room on the `disk`. The files
FAULTS_DONE-0, -1, ... say which have happened. The victim `nobody` is told of in its file by every call: the id of the first
argument that has one. With CLOCK_JUMPS the time of day jumps.
"""

import errno
import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path


def _done_file(number: int) -> str:
    return f"{os.environ['FAULTS_DONE']}-{number}"


def _die(number: int, victim: str) -> None:
    trial = _the_trial() if victim == "trial" else None
    try:
        os.close(os.open(_done_file(number), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    if victim == "disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")
    if victim == "self":
        os.kill(os.getpid(), signal.SIGKILL)
    if trial is not None:
        os.kill(trial, signal.SIGKILL)
        return
    os.kill(int(Path(os.environ["FAULT_DRIVER"]).read_text()), signal.SIGKILL)
    time.sleep(60)  # until this process is ended with its driver


def _the_trial() -> int:
    import psutil  # here, as every process imports this file

    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # others come and go meanwhile
            ours = process.environ().get("FAULTS_DONE") == os.environ["FAULTS_DONE"]
            if ours and "ray::ImplicitFunc" in " ".join(process.cmdline()):
                found.append(process.pid)
    (trial,) = found
    return trial


class _Loader(importlib.abc.Loader):
    def __init__(self, loader, faults: list[tuple[int, str, int, str]]) -> None:
        self.loader, self.faults = loader, faults

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module) -> None:
        self.loader.exec_module(module)
        for number, name, count, victim in self.faults:
            *owners, last = name.split(".")
            owner = module
            for part in owners:
                owner = getattr(owner, part)
            setattr(owner, last, _dying(getattr(owner, last), number, count, victim))


def _dying(function, number: int, count: int, victim: str):
    calls = []

    def wrapped(*args, **kwargs):
        if victim == "nobody":
            with open(_done_file(number), "a") as file:
                file.write(next(arg.id for arg in args if hasattr(arg, "id")) + "\n")
        elif number == 0 or os.path.exists(_done_file(number - 1)):
            calls.append(None)
            if len(calls) == count:
                _die(number, victim)
        return function(*args, **kwargs)

    return wrapped


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, faults: list[str]) -> None:
        self.faults: dict[str, list[tuple[int, str, int, str]]] = {}
        for number, fault in enumerate(faults):
            module, name, count, victim = fault.split(":")
            self.faults.setdefault(module, []).append((number, name, int(count), victim))

    def find_spec(self, fullname, path, target=None):
        if fullname not in self.faults:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        spec.loader = _Loader(spec.loader, self.faults[fullname])
        return spec


def _jumping(now):
    """A clock that is set back and forth by a day, at every third second."""

    def jumped() -> float:
        real = now()
        return real + 86_400 * (int(real) // 3 % 3 - 1)

    return jumped


if "CLOCK_JUMPS" in os.environ:
    time.time = _jumping(time.time)
if "FAULTS" in os.environ:
    sys.meta_path.insert(0, _Finder(os.environ["FAULTS"].split()))
