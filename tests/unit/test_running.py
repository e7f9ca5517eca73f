"""How many trials run or wait at once, on this machine and on clusters that may grow."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sweeps.execution.runner
import sweeps.execution.tune_run
from sweeps.command_line import compute_options
from sweeps.command_line.compute_options import resolved_gpus, resolved_precision
from sweeps.execution.graph import TaskGraph
from sweeps.execution.runner import RunnerSpec
from sweeps.execution.tune_run import _GrowingLimiter, _trial, _TrialSetup, trials_at_once
from tests.tiny import tiny_base
from trainables.failures import Failure, FailureKind
from trainables.specs.tasks import Task
from trainables.training.context import first_gpu
from trainables.worker import WorkerGroupFailed


class Study:
    hands_out_ahead = False

    def next_task(self):
        return None

    def is_exhausted(self):
        return True


@pytest.fixture
def cluster(monkeypatch):
    """A cluster whose slots and kind the test names."""

    def set_cluster(slots: int, *, joined: bool) -> None:
        monkeypatch.setattr(sweeps.execution.runner, "cluster_slots", lambda runner: slots)
        monkeypatch.setattr(sweeps.execution.tune_run, "is_joined", lambda: joined)

    return set_cluster


def test_this_machine_runs_what_fits(cluster):
    cluster(5, joined=False)
    assert trials_at_once(RunnerSpec(), TaskGraph([])) == trials_at_once(RunnerSpec(), Study()) == 5
    assert trials_at_once(RunnerSpec(workers_per_trial=2), TaskGraph([])) == 2
    assert trials_at_once(RunnerSpec(workers_per_trial=8), TaskGraph([])) == 1


def test_trials_wait_for_nodes_that_a_joined_cluster_may_start(cluster):
    cluster(0, joined=True)
    assert trials_at_once(RunnerSpec(), TaskGraph([])) > 10, "inline trials that wait cost nothing"
    assert trials_at_once(RunnerSpec(), Study()) == 2, "a study proposes better settings later"


@pytest.mark.parametrize(("slots", "expected"), [(1, 2), (2, 4), (4, 8), (32, 36)])
def test_worker_groups_wait_in_processes_on_the_head_and_are_fewer(cluster, slots, expected):
    cluster(slots, joined=True)
    assert trials_at_once(RunnerSpec(runner="train", gpus_per_worker=1), TaskGraph([])) == expected


def test_more_are_let_in_once_the_cluster_has_grown(monkeypatch):
    limiter, sizes = SimpleNamespace(max_concurrent=2), iter([4, 8])
    growing = _GrowingLimiter(limiter, lambda: next(sizes))
    growing.on_step_begin(1, [])
    assert limiter.max_concurrent == 2, "measured a moment ago"
    monkeypatch.setattr(sweeps.execution.tune_run, "MEASURE_EVERY_S", 0.0)
    for expected in (4, 8):
        growing.on_step_begin(2, [])
        assert limiter.max_concurrent == expected


def test_a_group_that_failed_as_often_as_it_may_is_not_tried_again(monkeypatch, tmp_path):
    def fails(*arguments, **options):
        raise WorkerGroupFailed("Training failed due to worker errors:\nRuntimeError: out of luck\n")

    said = []
    monkeypatch.setattr("trainables.worker.run_on_worker_group", fails)
    monkeypatch.setattr("ray.tune.integration.ray_train.TuneReportCallback", object)
    monkeypatch.setattr(sweeps.execution.tune_run.tune, "report", said.append)
    setup = _TrialSetup(
        task=Task(job=tiny_base()), group_size=1, gpus_per_worker=0.0, store_location=str(tmp_path), checkpoint_every_steps=1
    )
    _trial({"setup": setup})
    failure = Failure.from_json(said[0]["failure"])
    assert (failure.kind, failure.reason) == (FailureKind.DIED, "RuntimeError: out of luck")
    assert "Training failed due to worker errors" in Path(failure.log).read_text()


def test_what_the_user_says_holds_everywhere(cluster):
    for joined in (False, True):
        cluster(4, joined=joined)
        assert trials_at_once(RunnerSpec(max_concurrent=3), TaskGraph([])) == 3
        assert trials_at_once(RunnerSpec(max_concurrent=3), Study()) == 3


def test_one_worker_runs_inline_on_a_gpu_too_and_several_in_a_group():
    job = tiny_base()
    one, shared = RunnerSpec(gpus_per_worker=1), RunnerSpec(gpus_per_worker=0.5)
    two = RunnerSpec(gpus_per_worker=1, workers_per_trial=2)
    assert not one.uses_worker_group(job, 1) and not shared.uses_worker_group(job, 1) and two.uses_worker_group(job, 2)
    assert RunnerSpec(cpus_per_worker=4).demand_of(job) == ({"CPU": 4}, 1)
    assert one.demand_of(job) == ({"CPU": 1, "GPU": 1}, 1) and shared.worker == {"CPU": 1, "GPU": 0.5}


def test_gpus_are_found_without_an_option(monkeypatch):
    monkeypatch.setattr(compute_options, "is_joined", lambda: False)
    assert resolved_gpus("auto") == 0 and resolved_gpus(0.5) == 0.5
    assert resolved_precision("auto", 0.0) == "fp32" and resolved_precision("bf16", 0.0) == "bf16"
    monkeypatch.setattr(compute_options, "is_joined", lambda: True)
    monkeypatch.setattr(compute_options, "cluster_gpus", lambda: 4.0)
    assert resolved_gpus("auto") == 1 and resolved_precision("auto", 1.0) == "bf16"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert resolved_precision("auto", 1.0) == "bf16", "the GPU of the machine that submits says nothing of the cluster's"
    monkeypatch.setattr(compute_options, "is_joined", lambda: False)
    assert resolved_gpus("auto") == 1 and resolved_precision("auto", 1.0) == "fp32", "a T4 has no bf16"


def test_a_gpu_that_torch_cannot_use_is_one_line():
    with pytest.raises(ValueError, match="was given a GPU that PyTorch cannot use .* --gpus-per-worker 0"):
        first_gpu()


def test_compilation_needs_a_compiler(monkeypatch):
    asked = {"micro_batch": None, "activation_checkpointing": "auto", "compile": "on"}
    monkeypatch.setattr(compute_options, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"--compile on needs a C\+\+ compiler, such as g\+\+"):
        compute_options.computing_from(asked)
    assert compute_options.computing_from(asked | {"compile": "auto"}).compile == "auto"
