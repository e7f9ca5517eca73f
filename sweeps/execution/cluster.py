"""The Ray cluster that a sweep runs on: its own on this machine, or one to join; and whether its jobs can ever fit there."""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.placement_group import placement_group, remove_placement_group

from sweeps.execution.ray_environment import RAY_ENVIRONMENT
from trainables.failures import last_line

OBJECT_STORE_BYTES = 200_000_000
GROWTH_TIMEOUT_S = 30  # within which an autoscaler that can start a node says that it does
POLL_S = 1.0
CONNECT_TIMEOUT_S = 5


class ClusterError(ValueError):
    """A cluster that cannot be started or joined."""


class NoCapacity(ClusterError):
    """Jobs that no node of the cluster can ever run."""


def num_cpus() -> int:
    """CPUs that this process may use: those that it is bound to, within the quota of its container."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(bound, _cpu_quota())))


def _cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """CPUs that the control group allows, of either version; infinite without a limit."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (root / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota = int((root / "cpu/cpu.cfs_quota_us").read_text())
        return math.inf if quota < 0 else quota / int((root / "cpu/cpu.cfs_period_us").read_text())
    return math.inf


def is_joined() -> bool:
    """Whether the sweep runs on a cluster that it did not start."""
    return bool(os.environ.get("RAY_ADDRESS"))


def connect_cluster() -> None:
    """Join the cluster that RAY_ADDRESS names (as in a Ray job), else start one on this machine, bound to loopback.

    Raises ClusterError.
    """
    try:
        _connect()
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = last_line(str(error))
        if is_joined():
            raise _no_answer(reason) from error
        remedy = "Ray needs a writable folder with a short path: set RAY_TMPDIR, such as RAY_TMPDIR=/tmp/ray-$USER"
        raise ClusterError(f"Ray cannot be started on this machine ({reason}); {remedy}") from error


def leave_cluster() -> None:
    """Disconnect from the cluster; one that was started here ends."""
    # What Tune leaves in cycles holds references of Ray's. Freed by another thread while Ray shuts down, they end the process.
    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()


def cluster_gpus() -> float:
    """The most GPUs that a node of the cluster to join has now. Raises ClusterError."""
    check_address()
    connect_cluster()
    try:
        return max((node.get("GPU", 0) for node in _live_nodes()), default=0)
    finally:
        leave_cluster()


def check_address() -> None:
    """Raises ClusterError where nothing listens at RAY_ADDRESS: Ray itself would try for minutes."""
    host, _, port = os.environ.get("RAY_ADDRESS", "").rpartition(":")
    if not port.isdecimal() or "/" in host:  # "auto", or a ray:// address
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise _no_answer(str(error)) from error


def _no_answer(reason: str) -> ClusterError:
    remedy = "correct RAY_ADDRESS, or unset it to start a cluster on this machine"
    return ClusterError(f"the Ray cluster at {os.environ['RAY_ADDRESS']} does not answer ({reason}); {remedy}")


def _connect() -> None:
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if is_joined():
        own = {name: os.environ[name] for name in RAY_ENVIRONMENT}
        ray.init(runtime_env={"env_vars": own}, **settings)
    else:
        ray.init(
            address="local",
            num_cpus=num_cpus(),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            **settings,
        )
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # tracebacks of trials: the sweep says their last lines


def wait_for_capacity(bundle: Mapping[str, float], number: int, say: Callable[[str], None]) -> None:
    """Return once the cluster's nodes have room for `number` bundles beside each other, busy or not.

    Where they have none, an autoscaler is asked to start some. Raises NoCapacity if none is starting: such jobs would wait
    for ever.
    """
    if room(bundle) >= number:
        return
    text = f"{number} x {_text(bundle)}"
    say(f"waiting for nodes with room for {text}")
    group = placement_group([dict(bundle)] * number)
    try:
        last_growth_s, num_nodes = time.monotonic(), len(ray.nodes())
        while room(bundle) < number:
            if _nodes_starting() or len(ray.nodes()) != num_nodes:
                last_growth_s, num_nodes = time.monotonic(), len(ray.nodes())
            if time.monotonic() - last_growth_s > GROWTH_TIMEOUT_S:
                nodes = "; ".join(sorted({_text(_shown(node)) for node in _live_nodes()}))
                raise NoCapacity(
                    f"the cluster has no room for {text}, and no node that could hold it is starting; its nodes have {nodes}. "
                    "Ask for less with --gpus-per-worker or --workers-per-trial, or add such nodes"
                )
            time.sleep(POLL_S)
    finally:
        remove_placement_group(group)


def _live_nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def room(bundle: Mapping[str, float]) -> int:
    """Bundles that fit on all live nodes together, were they idle. A bundle lies on one node."""
    return sum(min(int(node.get(name, 0) / amount) for name, amount in bundle.items()) for node in _live_nodes())


def _nodes_starting() -> bool:
    """Whether the autoscaler says that nodes are being started."""
    status = _internal_kv_get("__autoscaling_status")
    report = json.loads(status)["autoscaler_report"] if status else {}
    return bool(report.get("pending_launches") or report.get("pending_nodes")) or _instances_starting()


def _instances_starting() -> bool:
    """The same of autoscaler v2, which `ray up` and KubeRay run by default."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    return bool(status.pending_launches or status.pending_nodes)


def _shown(resources: Mapping[str, float]) -> dict[str, float]:
    return {name: resources.get(name, 0) for name in ("CPU", "GPU")}


def _text(resources: Mapping[str, float]) -> str:
    return " + ".join(f"{amount:g} {name}" for name, amount in resources.items())
