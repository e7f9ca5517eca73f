"""Processes that die, disks that are full, losses that diverge, files that rot: what is left is as it would be without."""

import re
import shutil
import subprocess
from contextlib import suppress

import pytest

from tests.commands import PATIENCE_S, command, compute_without_ray, environment, matches, runs, start, sweep, wait_for, weights
from tests.injection import FAULTS, check_whole, run_with_faults

pytestmark = pytest.mark.slow


def test_workers_die_one_after_the_other_and_the_sweep_goes_on(alone, tmp_path):
    store = tmp_path / "store"
    faults = [
        "trainables.training.phase:PhaseTrainer.step:8:self",
        "sweeps.execution.tune_run:InlineContext.report:2:self",  # between a checkpoint and its report
        "trainables.jobs.score:compute_metrics:1:self",
    ]
    code, output = run_with_faults(store, faults, "--runner", "tune")
    assert code == 0, output
    check_whole(store, alone)


def test_the_sweep_itself_dies_again_and_again(alone, tmp_path):
    store = tmp_path / "store"
    faults = [
        "sweeps.execution.sweep:Sweep.__init__:1:self",  # planned, nothing begun
        "sweeps.execution.sweep:Sweep.reported:2:self",  # the learngene has a checkpoint
        "trainables.training.phase:PhaseTrainer.step:7:driver",  # of a base model
        "sweeps.execution.tune_run:InlineContext.report:2:driver",  # a checkpoint is written, nobody has heard of it
        "trainables.jobs.score:compute_metrics:1:driver",
        "sweeps.execution.sweep:Sweep.finished:1:self",  # a result is stored, MLflow has not heard of it
        "sweeps.results.report:draw_front:1:self",  # while it reports
    ]
    for fault in faults:
        code, output = run_with_faults(store, [fault], "--runner", "tune")
        assert code == -9, output
    sweep(store, "--runner", "tune")
    check_whole(store, alone)


def test_a_point_that_diverges_fails_with_its_reason_and_at_once(tmp_path):
    store = tmp_path / "store"
    output = sweep(store, "--runner", "tune", "--sigma-lr", "1e30", expect=1)
    assert "failed: fine L2-D16 seed 0: diverged: the loss is nan by step" in output and "try a lower learning rate" in output
    assert "scratch L2-D16 seed 0: done" in output and re.search(r"\* +scratch L2-D16", output)
    assert "Run the same command again" in output
    _, (parent,), children = runs(store)
    status = {child.data.tags["method"]: child.info.status for child in children}
    assert status == {"fine": "FAILED", "scratch": "FINISHED"} and parent.info.status == "FAILED"
    failed = next(child for child in children if child.data.tags["method"] == "fine")
    tags = failed.data.tags
    assert "try a lower learning rate" in tags["failure_reason"] and tags["failure_kind"] == "diverged"
    log = store / "logs" / f"{tags['trial_id']}.log"
    assert tags["failure_log"] == str(log) and str(log) in output.replace("\n", "")
    assert "Traceback" in log.read_text() and "TrainingDiverged" in log.read_text() and "Traceback" not in output


def test_a_damaged_artifact_is_noticed_and_made_again(alone, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(alone, store)
    (learngene,) = store.glob("learngene/*/learngene.safetensors")
    content = bytearray(learngene.read_bytes())
    content[-10] ^= 1
    learngene.write_bytes(content)
    output = sweep(store, "--runner", "tune", "--seeds", "0,1", "--methods", "fine")
    assert "learngene is damaged in the store; it is made again" in output
    before, after = weights(alone), weights(store)
    assert all(after[name] == content for name, content in before.items()) and len(after) == len(before) + 1


def test_no_room_at_any_write_is_survived_or_one_line(alone, tmp_path):
    store = tmp_path / "store"
    in_workers = [
        "trainables.training.checkpoint:report_checkpoint:1:disk",
        "trainables.jobs.score:save_grid:1:disk",
        "trainables.storage.store:Store.publish:1:disk",
    ]
    code, output = run_with_faults(store, in_workers, "--runner", "tune")
    assert code == 0 and "Traceback" not in output, output  # tried again
    of_the_sweep = {
        "trainables.storage.leases:Leases.claim:1:disk": 2,  # before anything starts
        "mlflow_setup.spool:Spool.append:3:disk": 1,
        "mlflow_setup.report:write_csv:1:disk": 1,
        "sweeps.results.report:_copy_samples:1:disk": 1,
    }
    for fault, expected in of_the_sweep.items():
        code, output = run_with_faults(store, [fault], "--runner", "tune")
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        assert code == expected and "Traceback" not in output and len(errors) == 1, output
        assert "No space left on device" in errors[0], output
    sweep(store, "--runner", "tune")
    check_whole(store, alone)


def test_a_clock_that_jumps_by_days_and_few_open_files_change_nothing(alone, tmp_path):
    store = tmp_path / "store"
    clock = {"PYTHONPATH": str(FAULTS), "CLOCK_JUMPS": "1"}
    few = ["bash", "-c", 'ulimit -n 256 && exec "$@"', "bash", *command(store, "--runner", "tune")]
    done = subprocess.run(few, env=environment() | clock, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    check_whole(store, alone)


def test_a_full_disk_fails_the_point_and_the_rest_can_be_had_later(tmp_path):
    disk, store, reference = tmp_path / "disk", tmp_path / "disk" / "store", tmp_path / "reference" / "store"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    options = ["--runner", "tune", "--methods", "scratch", "--steps", "600"]
    outside = ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    try:
        process = start(store, *options, *outside)
        wait_for(lambda: matches(store, "tune/*/*.base/checkpoint_*"), "a checkpoint", process=process)
        with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
            while True:  # until there is no room
                ballast.write(bytes(65536))
        output, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1 and "No space left on device" in output and "Traceback" not in output, output
        sweep_refused = sweep(store, *options, *outside, expect=2)
        assert sweep_refused == "", "what is said goes to stderr, before anything starts"
        (disk / "ballast").unlink()
        sweep(store, *options, *outside)
        compute_without_ray(reference, "--methods", "scratch", "--steps", "600")
        assert weights(store) == weights(reference)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
