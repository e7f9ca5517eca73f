"""What a command finds around it: file systems, a home, folders for Ray, a cluster's address."""

import os
import socket
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest

from sweeps.command_line import folders
from sweeps.command_line.folders import databases_folder, is_network, why_elsewhere
from tests.commands import command, environment
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
