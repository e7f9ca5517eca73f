"""The end of a sweep's connection to Ray, while other threads of the process go on."""

import subprocess
import sys

import pytest

from tests.commands import PATIENCE_S, ROOT, environment

pytestmark = pytest.mark.slow

# References of Ray's in cycles, as Tune leaves them: the automatic collection frees them, in whatever thread it comes.
LEAVE = """
import gc
import threading
import time

import ray

from sweeps.execution.cluster import connect_cluster, leave_cluster


class Node:
    pass


def leave_cycles(references):
    while references:
        node = Node()
        node.itself, node.reference = node, references.pop()
        time.sleep(1e-4)


connect_cluster()
gc.set_threshold(10)
references = [ray.put(i) for i in range(20_000)]
threading.Thread(target=leave_cycles, args=(references,), daemon=True).start()
leave_cluster()
assert references, "the thread was at it all the time"
assert gc.isenabled() and not ray.is_initialized()
print("left")
"""


def test_nothing_of_rays_is_freed_in_another_thread_while_it_shuts_down():
    done = subprocess.run(
        [sys.executable, "-c", LEAVE], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stdout.strip()) == (0, "left"), done.stderr
