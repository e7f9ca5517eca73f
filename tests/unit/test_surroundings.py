"""What a command finds around it: file systems, a home, folders for Ray, a cluster's address."""

import math
import os
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from sweeps.command_line import folders
from sweeps.command_line.folders import databases_folder, is_network, why_elsewhere
from sweeps.execution import cluster
from sweeps.execution.runner import RunnerSpec, cluster_slots
from tests.commands import ROOT, command, environment
from tests.tiny import tiny_learngene
from trainables.storage.store import Store

Mount = namedtuple("Mount", ("mountpoint", "fstype"))


@pytest.fixture()
def mounts(monkeypatch, tmp_path):
    """Marks folders as other file systems."""
    found = [Mount("/", "ext4")]
    monkeypatch.setattr(folders.psutil, "disk_partitions", lambda all: found)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return found


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "lustre", "fuse.sshfs"])
def test_databases_leave_a_network_file_system(mounts, tmp_path, kind):
    store = Store(tmp_path / "share" / "results")
    assert databases_folder(store) == Path(store.root) and why_elsewhere(store, Path(store.root)) is None
    mounts.append(Mount(str(tmp_path / "share"), kind))
    folder = databases_folder(store)
    assert folder == tmp_path / "home/fine-sweeps-data" and "on a network file system" in why_elsewhere(store, folder)
    mounts.append(Mount(str(tmp_path / "home"), kind))
    assert databases_folder(store) == Path(f"/var/tmp/fine-sweeps-data-{os.getuid()}"), "the home is shared too"


def test_the_mount_that_is_nearest_counts(mounts, tmp_path):
    mounts += [Mount(str(tmp_path), "nfs"), Mount(str(tmp_path / "scratch"), "xfs")]
    assert is_network(tmp_path / "not/there/yet") and not is_network(tmp_path / "scratch/x")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "scratch")
    assert not is_network(tmp_path / "link/x")


def run(store: Path, *options: str, **variables: str | None) -> subprocess.CompletedProcess:
    given = {name: value for name, value in (environment() | variables).items() if value is not None}
    return subprocess.run(command(store, *options), env=given, capture_output=True, text=True, timeout=300)


def check_refused(result: subprocess.CompletedProcess, text: str) -> None:
    assert result.returncode == 2 and "Traceback" not in result.stdout + result.stderr, result.stderr
    assert result.stderr.startswith("error: ") and text in result.stderr and result.stderr.count("\n") == 1, result.stderr


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 0.5),
        ({"cpu.max": "max 100000"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ({}, math.inf),
    ],
)
def test_a_container_has_the_cpus_of_its_quota(files, cpus, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cluster._cpu_quota(tmp_path) == cpus
    monkeypatch.setattr(cluster, "_cpu_quota", lambda: cpus)
    monkeypatch.setattr(cluster.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert cluster.num_cpus() == max(1, min(64, int(min(cpus, 64))))


def test_a_worker_fits_on_one_node(monkeypatch):
    nodes = [{"CPU": 3, "GPU": 1}, {"CPU": 4, "GPU": 0.5}, {"CPU": 0}]
    monkeypatch.setattr(cluster, "_live_nodes", lambda: nodes)
    assert cluster_slots(RunnerSpec()) == 7
    assert cluster_slots(RunnerSpec(gpus_per_worker=0.5)) == 3 and cluster_slots(RunnerSpec(gpus_per_worker=1)) == 1
    assert cluster_slots(RunnerSpec(gpus_per_worker=1.5)) == 0, "though there are 1.5 GPUs"


def test_the_learngene_waits_for_as_many_workers_as_were_asked_for():
    runner = RunnerSpec(source_workers=4)
    assert runner.demand_of(tiny_learngene()) == ({"CPU": 1}, 4)
    assert RunnerSpec().demand_of(tiny_learngene()) == ({"CPU": 1}, 1)


def test_a_checkout_that_runs_another_ones_code_says_so(tmp_path):
    (tmp_path / "sweeps").mkdir()
    script = tmp_path / "sweeps" / "size_grid.py"
    script.write_text("from sweeps.size_grid import main\nmain()\n")
    arguments = [sys.executable, str(script), "--dry-run", "--storage-path", str(tmp_path / "store")]
    result = subprocess.run(arguments, env=environment() | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert f"{script} runs the code of {ROOT}" in result.stdout, result.stderr
    assert "runs the code of" not in run(tmp_path / "store", "--dry-run").stdout


def test_a_stale_cluster_address_is_said_at_once(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    check_refused(run(tmp_path / "store", RAY_ADDRESS=address), f"the Ray cluster at {address} does not answer")


def test_a_path_too_long_for_sockets_names_the_remedy(tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    check_refused(run(tmp_path / "store", "--methods", "scratch", TMPDIR=str(long)), "set RAY_TMPDIR")


def test_no_home_is_needed_beside_a_storage_path(tmp_path):
    assert run(tmp_path / "store", "--dry-run", HOME=None).returncode == 0
    assert run(tmp_path / "store", "--dry-run", HOME="/proc/nowhere").returncode == 0


def test_a_place_that_cannot_be_written_is_one_line():
    check_refused(run(Path("/proc/nowhere")), "cannot be written")
