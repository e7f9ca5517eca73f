"""Jobs on a cluster that grows under a sweep: submitted, stopped, submitted again; and what such a cluster refuses."""

import subprocess
import time

import pytest

from tests.clusters import MAX_NODES, GrowingCluster
from tests.commands import TINY, runs, sweep, weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = GrowingCluster(tmp_path_factory.mktemp("cluster"))
    cluster.start()
    yield cluster
    cluster.stop()


def size_grid(store, *options: str) -> list[str]:
    return ["python", "sweeps/size_grid.py", *TINY, "--transfer", "none", "--storage-path", str(store), *options]


def wait_until(condition, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.2)


def test_a_job_makes_the_cluster_grow_is_stopped_and_goes_on(cluster, tmp_path):
    store, reference = tmp_path / "store", tmp_path / "reference"
    grid = ["--depths", "1,2", "--steps", "400", "--max-concurrent", "2", "--runner", "tune"]
    assert set(cluster.nodes()) <= {1}, "the head alone"
    code, output = cluster.submit(*size_grid(store, *grid), job_id="first", wait=False)
    assert code == 0, output
    wait_until(lambda: list((store / "tune").rglob("checkpoint_*/progress.json")), 150, "a base model has a checkpoint")
    wait_until(lambda: list((store / "learngene").glob("*/record.json")), 100, "the learngene is finished")
    time.sleep(5)
    cluster.job("stop", "first")
    _, (parent,), children = runs(store)
    assert parent.info.status == "KILLED" and all(c.info.status in ("KILLED", "FINISHED") for c in children)
    # A job may bring variables that sweeps set too.
    code, output = cluster.submit(*size_grid(store, *grid), job_id="again", RAY_AIR_NEW_OUTPUT="0")
    assert code == 0 and "Points on digits" in output, output
    sweep(reference, *grid)
    assert weights(store) == weights(reference)
    _, (parent,), children = runs(store)
    assert parent.info.status == "FINISHED" and [child.info.status for child in children] == ["FINISHED"] * 4
    assert max(cluster.nodes()) == 1 + MAX_NODES, "both nodes came up"
    wait_until(lambda: cluster.nodes()[-1] == 1, 60, "the nodes went down again")


def test_what_no_node_can_ever_run_is_refused(cluster, tmp_path):
    code, output = cluster.submit(*size_grid(tmp_path / "store", "--gpus-per-worker", "1"), job_id="gpu")
    assert code != 0 and "exit code 2" in output, output
    assert "the cluster has no room for 1 x 1 CPU + 1 GPU, and no node that could hold it is starting" in output


def test_a_relative_path_is_refused_in_a_job(cluster):
    code, output = cluster.submit(*size_grid("runs"), job_id="relative")
    assert code != 0 and "would lie in the job's temporary folder; name an absolute path" in output, output


def test_without_the_token_nothing_is_accepted(cluster):
    stranger = {**cluster.environment, "RAY_AUTH_TOKEN": "0" * 64}
    command = cluster.job_command("submit", "--", "python", "-c", "print('ran')")
    result = subprocess.run(command, env=stranger, capture_output=True, text=True, timeout=100)
    assert result.returncode != 0 and "ran" not in result.stdout and "uthenticat" in result.stdout + result.stderr
