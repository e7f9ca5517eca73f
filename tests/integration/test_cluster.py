"""Jobs on a cluster: submitted, stopped, submitted again, refused; and a cluster that grows under a sweep."""

import subprocess

import pytest

from tests.clusters import OwnCluster
from tests.commands import ROOT, TINY, compute_without_ray, matches, runs, wait_for, weights

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """One that stays as it is: nodes of one machine share the folder of a job's files, and would delete it when they go."""
    cluster = OwnCluster(tmp_path_factory.mktemp("cluster"), head_cpus=2)
    cluster.start()
    yield cluster
    cluster.stop()


def size_grid(store, *options: str) -> list[str]:
    return ["python", "sweeps/size_grid.py", *TINY, "--transfer", "none", "--storage-path", str(store), *options]


def test_a_job_is_stopped_and_submitted_again(cluster, tmp_path):
    store = tmp_path / "store"
    grid = ["--steps", "600", "--runner", "tune", "--methods", "scratch"]
    code, output = cluster.submit(*size_grid(store, *grid), job_id="first", wait=False)
    assert code == 0, output
    wait_for(lambda: matches(store, "tune/**/checkpoint_*/progress.json"), "a checkpoint", timeout_s=100)
    cluster.job("stop", "first")
    _, (parent,), (child,) = runs(store)
    assert parent.info.status == "KILLED" and child.info.status == "KILLED"
    # A job may bring variables that sweeps set too.
    code, output = cluster.submit(*size_grid(store, *grid), job_id="again", RAY_AIR_NEW_OUTPUT="0")
    assert code == 0 and "Points on digits" in output, output
    _, (parent,), (child,) = runs(store)
    assert parent.info.status == "FINISHED" and child.info.status == "FINISHED"


@pytest.mark.parametrize(
    "autoscaler", [pytest.param(version, marks=pytest.mark.xdist_group(version)) for version in ("v1", "v2")]
)
def test_nodes_come_up_for_a_sweep_one_dies_and_they_go_down_after_it(tmp_path, autoscaler):
    growing = OwnCluster(tmp_path, head_cpus=0, max_nodes=2, autoscaler=autoscaler)
    store, undisturbed = tmp_path / "store", tmp_path / "undisturbed"
    grid = ["--methods", "scratch", "--seeds", "0,1,2", "--steps", "600"]
    growing.start()
    try:
        wait_for(growing.nodes, "the nodes are counted", timeout_s=30)
        assert set(growing.nodes()) == {1}, "the head alone"
        joined = {**growing.environment, "RAY_ADDRESS": growing.address}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(size_grid(store, *grid, "--runner", "tune"), env=joined, cwd=ROOT, **output) as process:
            trials_begun = "tune/*-base-*/*/checkpoint_*/progress.json"
            wait_for(lambda: len({f.parents[1] for f in matches(store, trials_begun)}) == 2, "two trials", process=process)
            growing.kill_node_of_trial()
            said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert "waiting for nodes with room for 1 x 1 CPU" in said
        assert max(growing.nodes()) == 3, "both nodes came up"
        wait_for(lambda: growing.nodes()[-1] == 1, "the nodes went down again", timeout_s=60)
    finally:
        growing.stop()
    compute_without_ray(undisturbed / "store", *grid)
    assert weights(store) == weights(undisturbed / "store")
    _, (parent,), children = runs(store)
    assert len(children) == 3 and {run.info.status for run in (parent, *children)} == {"FINISHED"}


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
