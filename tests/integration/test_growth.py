"""A cluster that grows and shrinks under a sweep, and loses a node."""

import subprocess

import pytest

from tests.clusters import OwnCluster, size_grid
from tests.commands import PATIENCE_S, ROOT, compute_without_ray, matches, runs, wait_for, weights

pytestmark = pytest.mark.slow


def test_nodes_come_up_for_a_sweep_one_dies_and_they_go_down_after_it(tmp_path):
    growing = OwnCluster(tmp_path, head_cpus=0, max_nodes=2)
    store, undisturbed = tmp_path / "store", tmp_path / "undisturbed"
    grid = ["--methods", "scratch", "--seeds", "0,1,2", "--steps", "600"]
    try:
        growing.start()
        wait_for(growing.nodes, "the nodes are counted")
        assert set(growing.nodes()) == {1}, "the head alone"
        joined = {**growing.environment, "RAY_ADDRESS": growing.address}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(size_grid(store, *grid, "--runner", "tune"), env=joined, cwd=ROOT, **output) as process:
            trials_begun = "tune/*/*.base/checkpoint_*/progress.json"
            wait_for(lambda: len({f.parents[1] for f in matches(store, trials_begun)}) == 2, "two trials", process=process)
            growing.kill_node_of_trial()
            try:
                said, _ = process.communicate(timeout=PATIENCE_S)
            finally:
                process.kill()
        assert process.returncode == 0, said
        assert "waiting for nodes with room for 1 x 1 CPU" in said
        assert max(growing.nodes()) == 3, "both nodes came up"
        wait_for(lambda: growing.nodes()[-1] == 1, "the nodes went down again")
    finally:
        growing.stop()
    compute_without_ray(undisturbed / "store", *grid)
    assert weights(store) == weights(undisturbed / "store")
    _, (parent,), children = runs(store)
    assert len(children) == 3 and {run.info.status for run in (parent, *children)} == {"FINISHED"}
