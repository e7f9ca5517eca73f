"""Kills a process at a chosen call, once: on the path of a command under test, Python imports this in all its processes.

FAULT is `module:function:count:victim`. The call number `count` of that function, in whichever process comes to it first,
sends SIGKILL to the process it`self`, to the only Tune `trial`, or to the `driver`, whose pid is in the file FAULT_DRIVER.
FAULT_DONE is the file that says that it has happened.
"""

import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
from pathlib import Path


def _die(victim: str) -> None:
    import psutil  # here, as every process imports this file

    try:
        os.close(os.open(os.environ["FAULT_DONE"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    if victim == "self":
        os.kill(os.getpid(), signal.SIGKILL)
    if victim == "trial":
        (trial,) = [p for p in psutil.process_iter() if "ray::ImplicitFunc.train" in " ".join(p.cmdline()) and _is_ours(p)]
        trial.kill()
        return
    os.kill(int(Path(os.environ["FAULT_DRIVER"]).read_text()), signal.SIGKILL)
    time.sleep(60)  # until this process is ended with its driver


def _is_ours(process) -> bool:
    return process.environ().get("FAULT_DONE") == os.environ["FAULT_DONE"]


class _Loader(importlib.abc.Loader):
    def __init__(self, loader, name: str, count: int, victim: str) -> None:
        self.loader, self.name, self.count, self.victim = loader, name, count, victim

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module) -> None:
        self.loader.exec_module(module)
        *owners, last = self.name.split(".")
        owner = module
        for part in owners:
            owner = getattr(owner, part)
        function, calls = getattr(owner, last), []

        def wrapped(*args, **kwargs):
            calls.append(None)
            if len(calls) == self.count:
                _die(self.victim)
            return function(*args, **kwargs)

        setattr(owner, last, wrapped)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, module: str, name: str, count: str, victim: str) -> None:
        self.module, self.arguments = module, (name, int(count), victim)

    def find_spec(self, fullname, path, target=None):
        if fullname != self.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        spec.loader = _Loader(spec.loader, *self.arguments)
        return spec


if "FAULT" in os.environ:
    sys.meta_path.insert(0, _Finder(*os.environ["FAULT"].split(":")))
