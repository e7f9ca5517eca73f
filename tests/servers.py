"""A real MLflow server, on SQLite or on a PostgreSQL of this machine's distribution, that can be killed and started again."""

import glob
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.clusters import free_port

SERVER_START_S = 90  # measured: 11 to 30 s


class MlflowServer:
    """`mlflow server` on loopback; its store and its artifacts outlive it."""

    def __init__(self, folder: Path, backend_uri: str) -> None:
        self.port, self.log = free_port(), folder / "server.log"
        self.uri = f"http://127.0.0.1:{self.port}"
        self.command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        self.command += ["--backend-store-uri", backend_uri, "--artifacts-destination", str(folder / "artifacts")]
        self.command += ["--workers", "1"]
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Returns before it answers."""
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with self.log.open("ab") as log:
            # A group of its own: its workers are killed with it.
            self.process = subprocess.Popen(
                self.command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self) -> None:
        deadline = time.monotonic() + SERVER_START_S
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5) as response:
                if response.read() == b"OK":
                    return
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of a fresh database server. Skips the test, with the reason, where there can be none."""
    as_owner = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # it refuses to run as root
    binaries = _binaries()
    folder = Path(tempfile.mkdtemp(prefix="fine-sweeps-postgresql-"))  # pytest's own folders are closed to other users
    port = free_port()

    def run(name: str, *arguments: str) -> None:
        result = subprocess.run(
            [*as_owner, str(binaries / name), "-D", f"{folder}/data", *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=(folder / "log").open("ab"),  # not a pipe, which the server would keep open
            stderr=subprocess.STDOUT,
        )
        assert result.returncode == 0, (folder / "log").read_text()

    try:
        if as_owner:
            shutil.chown(folder, "postgres")
        run("initdb", "--auth", "trust", "--username", "postgres", "--no-sync")
        run("pg_ctl", "-w", "-o", f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=", "start")
        try:
            yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def _binaries() -> Path:
    """The folder with initdb and pg_ctl, which distributions keep off the PATH; installed where it is missing."""
    pytest.importorskip("psycopg2", reason="PostgreSQL needs psycopg2-binary, of the extra test")
    if (found := _find_binaries()) is not None:
        return found
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("PostgreSQL is not installed, and this is not root on a Debian or Ubuntu that could install it")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "postgresql"]):
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"PostgreSQL cannot be installed: {' '.join(command)}: {result.stderr.strip()[-300:]}")
    return _find_binaries()


def _find_binaries() -> Path | None:
    on_path = shutil.which("pg_ctl")
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/pg_ctl"))
    command = on_path or (found[-1] if found else None)
    return None if command is None else Path(command).resolve().parent


class ObjectStore:
    """An S3-compatible server on loopback, in memory, with one bucket."""

    def __init__(self, folder: Path) -> None:
        self.port, self.log = free_port(), folder / "s3.log"
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.environment = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_REGION": "us-east-1"}

    def uri(self, path: str) -> str:
        return f"s3://bucket/{path}?scheme=http&endpoint_override=127.0.0.1:{self.port}"

    def __enter__(self) -> "ObjectStore":
        command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(self.port)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + SERVER_START_S
        while True:
            request = urllib.request.Request(f"{self.endpoint}/bucket", method="PUT")
            with suppress(OSError), urllib.request.urlopen(request, timeout=5):
                return self
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
