"""A Ray cluster of this machine's own, with token authentication and, if it is to grow, an autoscaler that starts nodes."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from tests.commands import PATIENCE_S, ROOT, TINY

HEAD_TYPE, HEAD_NODE_ID = "ray.head.default", "f" * 51 + "00000"  # as the fake provider calls the head in any case
TAG = "FINE_SWEEPS_TEST_CLUSTER"
COUNT_NODES = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
started, file = time.monotonic(), open(sys.argv[2], "w")  # not stdout, where Ray says what becomes of nodes
while True:
    print(f"{time.monotonic() - started:.1f} {sum(node['Alive'] for node in ray.nodes())}", file=file, flush=True)
    time.sleep(0.5)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def size_grid(store: Path, *options: str) -> list[str]:
    """The command as it is submitted from the checkout."""
    return ["python", "sweeps/size_grid.py", *TINY, "--transfer", "none", "--storage-path", str(store), *options]


class OwnCluster:
    """A head with `head_cpus`, and up to `max_nodes` nodes with one CPU that an autoscaler starts in processes of this machine.

    `stop` ends every process that it led to, and no other cluster's.
    """

    def __init__(self, folder: Path, *, head_cpus: int, max_nodes: int = 0) -> None:
        import ray._private.services

        self.folder, self.head_cpus, self.max_nodes = folder, head_cpus, max_nodes
        self.tag = uuid.uuid4().hex
        # Jobs join the cluster that was started last in its folder. Not below `folder`, whose path is too long for sockets.
        self.ray_folder = tempfile.mkdtemp(prefix="ray-")
        self.port, self.dashboard_port = free_port(), free_port()
        self.address = f"{ray._private.services.get_node_ip_address()}:{self.port}"
        outside = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "MLFLOW_TRACKING_URI"}
        # The head's PATH is the jobs': `python` must be this one.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex + uuid.uuid4().hex}
        self.environment = {**outside, **token, "PATH": path, TAG: self.tag, "RAY_USAGE_STATS_ENABLED": "0"}
        self.nodes_over_time = folder / "nodes.txt"

    def start(self) -> None:
        command = ["ray", "start", "--head", "--port", str(self.port), "--num-cpus", str(self.head_cpus)]
        command += ["--object-store-memory", "100000000", "--temp-dir", self.ray_folder]
        if self.max_nodes:
            config = self.folder / "cluster.yaml"
            config.write_text(yaml.safe_dump(self._config()))
            command += ["--autoscaling-config", str(config)]
        command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(self.dashboard_port)]
        command += ["--dashboard-agent-listen-port", str(free_port())]  # the default may be taken by another cluster
        fake = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        fake |= {"RAY_CLOUD_INSTANCE_ID": HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_NODE_ID}
        self._run(command, RAY_enable_autoscaler_v2="1", **fake)
        count = [sys.executable, "-c", COUNT_NODES, self.address, str(self.nodes_over_time)]
        subprocess.Popen(count, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _config(self) -> dict:
        """As Ray's own tests make it, whose template is not part of its package."""
        lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
        return {
            "cluster_name": "fake",
            "max_workers": self.max_nodes,
            "idle_timeout_minutes": 0.1,
            "provider": {
                "type": "external",  # as "fake_multinode" it wants a file that is not part of Ray's package
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "gcs_address": self.address,
                "launch_multiple": True,
                "head_node_id": HEAD_NODE_ID,
            },
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{f"{name}_commands": [] for name in lists},
            **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
            "head_node_type": HEAD_TYPE,
            "available_node_types": {
                HEAD_TYPE: {"resources": {"CPU": self.head_cpus}, "node_config": {}, "max_workers": 0},
                "worker": {
                    "resources": {"CPU": 1, "object_store_memory": 100_000_000},
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": self.max_nodes,
                },
            },
        }

    def _run(self, command: list[str], **variables: str) -> subprocess.CompletedProcess:
        result = subprocess.run(
            command, env={**self.environment, **variables}, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result

    def job_command(self, *arguments: str) -> list[str]:
        return ["ray", "job", arguments[0], "--address", f"http://127.0.0.1:{self.dashboard_port}", *arguments[1:]]

    def submit(self, *entrypoint: str, job_id: str, wait: bool = True, **variables: str) -> tuple[int, str]:
        """A job with this checkout as its working folder; its exit code and what it printed."""
        runtime_env = json.dumps({"env_vars": variables, "excludes": ["/tests", "/docs", "/benchmarks"]})
        options = ["--submission-id", job_id, "--working-dir", str(ROOT), "--runtime-env-json", runtime_env]
        command = self.job_command("submit", *options, *([] if wait else ["--no-wait"]), "--", *entrypoint)
        result = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
        return result.returncode, result.stdout + result.stderr

    def job(self, *arguments: str) -> str:
        return self._run(self.job_command(*arguments)).stdout

    def nodes(self) -> list[int]:
        """Numbers of nodes since the start, twice a second."""
        lines = self.nodes_over_time.read_text().splitlines() if self.nodes_over_time.exists() else []
        return [int(line.split()[1]) for line in lines]

    def kill_node_of_trial(self) -> None:
        """SIGKILL to all processes of a node that runs a Tune trial, the node's own first."""
        trials = []
        for process in self._processes():
            with suppress(psutil.Error):
                trials += [process] if "ray::ImplicitFunc" in " ".join(process.cmdline()) else []
        trial = trials[0]
        node = next(process for process in trial.parents() if process.name() == "raylet")
        for process in (node, *node.children(recursive=True)):
            with suppress(psutil.Error):
                process.kill()

    def _processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(TAG) == self.tag:
                    yield process

    def stop(self) -> None:
        for _ in range(2):  # one that was being started may have come up meanwhile
            for process in self._processes():
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(1)
        shutil.rmtree(self.ray_folder, ignore_errors=True)
