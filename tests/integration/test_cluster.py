"""Jobs on a cluster: submitted, stopped, submitted again, refused."""

import subprocess

import pytest

from tests.clusters import OwnCluster, size_grid
from tests.commands import PATIENCE_S, matches, runs, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """One that stays as it is: nodes of one machine share the folder of a job's files, and would delete it when they go."""
    cluster = OwnCluster(tmp_path_factory.mktemp("cluster"), head_cpus=2)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def test_a_job_is_stopped_and_submitted_again(cluster, tmp_path):
    store = tmp_path / "store"
    grid = ["--steps", "600", "--runner", "tune", "--methods", "scratch"]
    code, output = cluster.submit(*size_grid(store, *grid), job_id="first", wait=False)
    assert code == 0, output
    wait_for(lambda: matches(store, "tune/**/checkpoint_*/progress.json"), "a checkpoint")
    cluster.job("stop", "first")
    _, (parent,), (child,) = runs(store)
    assert parent.info.status == "KILLED" and child.info.status == "KILLED"
    # A job may bring variables that sweeps set too.
    code, output = cluster.submit(*size_grid(store, *grid), job_id="again", RAY_AIR_NEW_OUTPUT="0")
    assert code == 0 and "Points on digits" in output, output
    _, (parent,), (child,) = runs(store)
    assert parent.info.status == "FINISHED" and child.info.status == "FINISHED"


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
    result = subprocess.run(command, env=stranger, capture_output=True, text=True, timeout=PATIENCE_S)
    assert result.returncode != 0 and "ran" not in result.stdout and "uthenticat" in result.stdout + result.stderr
