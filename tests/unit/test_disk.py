"""Disk: what a sweep needs, its budget, and what may be deleted after it."""

import shutil
from collections import namedtuple
from dataclasses import replace

import pytest
from click.testing import CliRunner
from rich.console import Console

from sweeps.command_line.options import preset_grid
from sweeps.planning.chosen import ChosenOptions
from sweeps.planning.costs import result_bytes
from sweeps.planning.disk import DiskFull, check_disk, disk_need
from sweeps.planning.plan import Plan, plan_grid
from sweeps.results.cleaning import clean, deletable
from sweeps.size_grid import main
from tests.searches import record_of
from trainables.specs.base import JobSpec
from trainables.specs.models import BaseModelSpec
from trainables.specs.scores import ScoreSpec
from trainables.specs.transfers import BankSpec, TransferSpec
from trainables.storage.files import BANK_FILE, DELTA_FILE, LEARNGENE_FILE, MODEL_FILE, SAMPLES_FILE
from trainables.storage.store import Store


def small_plan() -> Plan:
    grid = preset_grid("demo")
    transfer = replace(grid.transfer, methods=("full", "diff-tuning"), options=ChosenOptions())
    return plan_grid(replace(grid, depths=(2, 4), widths=(32,), methods=("fine",), transfer=transfer))


def publish(store: Store, job, folder, fid: float = 1.0) -> None:
    folder = folder / job.id
    folder.mkdir(parents=True)
    files = {BaseModelSpec: MODEL_FILE, TransferSpec: DELTA_FILE, BankSpec: BANK_FILE, ScoreSpec: SAMPLES_FILE}
    name = files.get(type(job), LEARNGENE_FILE)
    (folder / name).write_bytes(bytes(10 if isinstance(job, ScoreSpec) else 1000))
    metrics = {"job_s": 1.0, "peak_memory_bytes": 1}
    if isinstance(job, ScoreSpec):
        metrics |= {"fid": fid, "eval_s": 1.0}
    else:
        size = getattr(job, "size", None)
        params = 0 if size is None else size.depth
        metrics |= {"train_s": 1.0, "params_total": params, "params_trainable": params}
        metrics |= {"macs": params, "serve_bytes": params}
    store.publish(job, folder, record_of(job, metrics))


def jobs_of_kind(plan: Plan, kind: str) -> list[JobSpec]:
    return [job for job in plan.jobs if job.kind == kind]


@pytest.fixture
def filled(tmp_path):
    """A finished sweep: at depth 4 everything is worse than at depth 2, but for diff-tuning."""
    store, plan = Store(tmp_path / "store"), small_plan()
    for job in plan.jobs:
        model = job.trained if isinstance(job, ScoreSpec) else job
        deep = getattr(model, "size", None) is not None and model.size.depth == 4
        good = isinstance(model, TransferSpec) and model.method == "diff-tuning"
        publish(store, job, tmp_path / "made", fid=0.5 if deep and good else 2.0 if deep else 1.0)
    return store, plan


def test_points_on_no_front_and_banks_that_are_done_may_go(filled):
    store, plan = filled
    found = {item.path for item in deletable(plan, store)}
    deep_full = next(job for job in jobs_of_kind(plan, "transfer") if job.size.depth == 4 and job.method == "full")
    assert f"{deep_full.folder}/{DELTA_FILE}" in found
    assert {f"{bank.folder}/{BANK_FILE}" for bank in jobs_of_kind(plan, "bank")} <= found
    deltas = {f"{job.folder}/{DELTA_FILE}" for job in jobs_of_kind(plan, "transfer") if job is not deep_full}
    assert not deltas & found, "diff-tuning is on its own method's front at both depths"
    assert not any(path.endswith(MODEL_FILE) for path in found), "base models of kept deltas stay, on a front or not"
    assert not any("learngene" in path or "samples" in path or "record" in path for path in found)


def test_a_base_that_another_sweep_uses_stays_until_its_deltas_are_gone(filled):
    store, plan = filled
    points = tuple(point for point in plan.points if point.model.kind == "base")
    bases_only = Plan(tasks=(*plan.stages["source"], *plan.stages["base"]), points=points)
    deep = next(job for job in jobs_of_kind(plan, "base") if job.size.depth == 4)
    path = f"{deep.folder}/{MODEL_FILE}"
    assert path not in {item.path for item in deletable(bases_only, store)}, "deltas of another sweep need it"
    for transfer in jobs_of_kind(plan, "transfer"):
        store.delete(f"{transfer.folder}/{DELTA_FILE}")
    assert path in {item.path for item in deletable(bases_only, store)}


def test_what_unfinished_jobs_need_stays(filled):
    store, plan = filled
    unfinished = next(job for job in jobs_of_kind(plan, "transfer") if job.method == "diff-tuning" and job.size.depth == 2)
    store.discard(unfinished)
    found = {item.path for item in deletable(plan, store)}
    assert f"{unfinished.bank.folder}/{BANK_FILE}" not in found and f"{unfinished.base.folder}/{MODEL_FILE}" not in found


@pytest.mark.parametrize("score", ["score", "forgetting"])
def test_a_model_stays_as_long_as_a_score_of_it_is_missing(filled, score):
    store, plan = filled
    point = next(p for p in plan.points if p.model.kind == "transfer" and p.model.size.depth == 4 and p.model.method == "full")
    path = f"{point.model.folder}/{DELTA_FILE}"
    assert path in {item.path for item in deletable(plan, store)}
    store.discard(getattr(point, score))
    assert path not in {item.path for item in deletable(plan, store)}


def test_checkpoints_of_finished_jobs_may_go_and_others_stay(filled):
    store, plan = filled
    done, open_ = jobs_of_kind(plan, "base")
    for job in (done, open_):
        for top in (f"tune/attempt/{job.run_id}.{job.id}", f"train/{job.run_id}"):
            store.filesystem.create_dir(f"{store.root}/{top}/checkpoint_1", recursive=True)
            store._write(f"{store.root}/{top}/checkpoint_1/state.pt", bytes(500))
    store.discard(open_)
    found = {item.path: item.size_bytes for item in deletable(plan, store)}
    assert found[f"tune/attempt/{done.run_id}.{done.id}"] == 500 and found[f"train/{done.run_id}"] == 500
    assert not any(open_.id in path for path in found)


def test_cleaning_lists_first_and_deletes_when_told_to(filled, capsys):
    store, plan = filled
    expected = {item.path for item in deletable(plan, store)}
    clean(plan, store, Console(width=200), confirmed=False)
    output = capsys.readouterr().out
    assert "Nothing was deleted; add --yes" in output and "bank that nothing reads any more" in output
    assert {item.path for item in deletable(plan, store)} == expected
    clean(plan, store, Console(width=200), confirmed=True)
    assert deletable(plan, store) == [] and all(store.read_record(job) is not None for job in plan.jobs)
    clean(plan, store, Console(width=200), confirmed=True)
    assert "Nothing to delete" in capsys.readouterr().out


def test_the_need_is_that_of_what_is_missing():
    plan = small_plan()
    need = disk_need(plan, set(), slots=2)
    points = sum(result_bytes(point.model) for point in plan.points)
    assert points < need.result_bytes < 2 * points and need.checkpoint_bytes > 0
    assert disk_need(plan, {job.id for job in plan.jobs}, slots=2).result_bytes == 0


def test_a_sweep_that_does_not_fit_is_refused_before_it_starts(tmp_path, monkeypatch):
    store, need = Store(tmp_path), disk_need(small_plan(), set(), slots=2)
    check_disk(store, need, None)
    with pytest.raises(DiskFull, match="more than the --disk-budget of 1,000; raise it"):
        check_disk(store, need, 1000)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(DiskFull, match="of checkpoints\\), 5,000 are free; make room"):
        check_disk(store, need, None)
    result = CliRunner().invoke(main, ["--storage-path", str(tmp_path / "s")])
    assert result.exit_code == 2 and result.output.count("\n") == 1 and "5,000 are free" in result.output
