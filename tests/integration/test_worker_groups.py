"""Trials on Ray Train worker groups: what they compute and report, and what is left when their processes die."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.commands import TRANSFER, compute_without_ray, runs, sweep, weights
from tests.injection import check_whole, run_with_faults

pytestmark = pytest.mark.slow

TWO_WORKERS = ["--runner", "train", "--workers-per-trial", "2", "--methods", "fine"]


def with_learngene(alone: Path, store: Path) -> Path:
    """A store in which the learngene is made, so that a sweep starts with its base model."""
    for kind in ("extractor", "learngene"):
        shutil.copytree(alone / kind, store / kind)
    return store


@pytest.fixture(scope="module")
def undisturbed(alone, tmp_path_factory) -> Path:
    store = with_learngene(alone, tmp_path_factory.mktemp("undisturbed") / "store")
    sweep(store, *TWO_WORKERS)
    return store


def test_two_workers_train_what_one_does_up_to_rounding_and_report_everything(alone, undisturbed):
    (ours,) = undisturbed.glob("base/*/model.safetensors")
    theirs = load_file(alone / ours.relative_to(undisturbed))
    for name, tensor in load_file(ours).items():
        assert (tensor - theirs[name]).abs().max() < 2e-3, name  # AdamW amplifies the rounding of a sum of halves
    assert not any((undisturbed / "train").glob("*")), "checkpoints of finished jobs are deleted"
    client, _, (child,) = runs(undisturbed)
    assert [m.step for m in client.get_metric_history(child.info.run_id, "train/loss")] == [4, 6, 8, 12]
    assert child.info.status == "FINISHED" and {"fid", "train_s", "eval_s"} <= set(child.data.metrics)


def test_one_worker_on_a_group_computes_what_is_computed_without_ray(alone, tmp_path):
    store = tmp_path / "store"
    sweep(store, "--runner", "train", "--source-workers", "1", "--methods", "fine")
    assert len(weights(store)) == 2 and weights(store).items() <= weights(alone).items()


def test_every_process_of_a_worker_group_dies_once_and_the_sweep_goes_on(alone, undisturbed, tmp_path):
    store = with_learngene(alone, tmp_path / "store")
    faults = [
        "trainables.training.phase:PhaseTrainer.step:6:self",  # one of two workers
        "ray.tune.integration.ray_train:TuneReportCallback.after_report:1:self",  # the group's controller
        "trainables.training.phase:PhaseTrainer.step:2:trial",  # the trial that waits for the group
    ]
    code, output = run_with_faults(store, faults, *TWO_WORKERS)
    assert code == 0, output
    check_whole(store, undisturbed)


def test_two_workers_share_a_bank_and_a_transfer_that_rehearses(tmp_path):
    """The bank's drawing and every batch: bank images to one, most target images to the other."""
    options = [*TRANSFER, "--methods", "fine", "--transfer", "diff-tuning+difffit", "--schedules", "linear"]
    store = tmp_path / "store"
    compute_without_ray(store, *options)
    delta, bank = next(store.glob("transfer/*")), next(store.glob("bank/*"))
    before, images = load_file(delta / "delta.safetensors"), (bank / "bank.parquet").read_bytes()
    (delta / "record.json").unlink()
    (bank / "record.json").unlink()
    sweep(store, *options, "--runner", "train", "--workers-per-trial", "2")
    after = load_file(delta / "delta.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        assert (before[name] - after[name]).abs().max() < 1e-3, name  # AdamW amplifies the rounding of a sum of halves
    assert (bank / "bank.parquet").read_bytes() == images
