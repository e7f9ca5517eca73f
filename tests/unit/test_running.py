"""How many trials run or wait at once, on this machine and on clusters that may grow."""

import pytest

import sweeps.running
from sweeps.running import FixedJobs, RunnerSpec, trials_at_once


class Study:
    def next_job(self):
        return None

    def is_exhausted(self):
        return True


@pytest.fixture
def cluster(monkeypatch):
    """A cluster whose slots and kind the test names."""

    def set_cluster(slots: int, *, joined: bool) -> None:
        monkeypatch.setattr(sweeps.running, "cluster_slots", lambda runner: slots)
        monkeypatch.setattr(sweeps.running, "is_joined", lambda: joined)

    return set_cluster


def test_this_machine_runs_what_fits(cluster):
    cluster(5, joined=False)
    assert trials_at_once(RunnerSpec(), FixedJobs([])) == trials_at_once(RunnerSpec(), Study()) == 5
    assert trials_at_once(RunnerSpec(workers_per_trial=2), FixedJobs([])) == 2
    assert trials_at_once(RunnerSpec(workers_per_trial=8), FixedJobs([])) == 1


def test_trials_wait_for_nodes_that_a_joined_cluster_may_start(cluster):
    cluster(0, joined=True)
    assert trials_at_once(RunnerSpec(), FixedJobs([])) > 10, "inline trials that wait cost nothing"
    assert trials_at_once(RunnerSpec(), Study()) == 2, "a study proposes better settings later"
    groups = RunnerSpec(gpus_per_worker=1)
    assert [trials_at_once(groups, FixedJobs([])) for slots in (1, 2, 4) if cluster(slots, joined=True) is None] == [2, 4, 8]


def test_what_the_user_says_holds_everywhere(cluster):
    for joined in (False, True):
        cluster(4, joined=joined)
        assert trials_at_once(RunnerSpec(max_concurrent=3), FixedJobs([])) == 3
        assert trials_at_once(RunnerSpec(max_concurrent=3), Study()) == 3
