"""Failures as data: their kind, their reason, and a log with the traceback; and what has changed under a finished sweep."""

import io
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

import sweeps.execution.tune_run
from fine_core.evaluation.finite import NotFinite
from sweeps.execution.agenda import GridAgenda
from sweeps.execution.runner import RunnerSpec
from sweeps.execution.sweep import Surroundings, Sweep
from sweeps.execution.tune_run import _trial, _TrialSetup
from sweeps.planning.plan import Plan, plan_tasks
from tests.tiny import compute, tiny_base, tiny_learngene, tiny_score, tiny_transfer
from trainables.failures import Failure, FailureKind, failure_of, failure_of_text, kind_of
from trainables.jobs.run import _agreed_hashes, run_job
from trainables.specs.scorers import ExtractorSpec
from trainables.specs.tasks import Task
from trainables.storage.files import LEARNGENE_FILE, MODEL_FILE
from trainables.storage.leases import Leases
from trainables.storage.store import Store, StoreError
from trainables.training.context import LocalContext
from trainables.training.loop import TrainingDiverged


@pytest.mark.parametrize(
    ("error", "kind", "retried"),
    [
        (TrainingDiverged("the loss is nan by step 3"), FailureKind.DIVERGED, False),
        (NotFinite("2 of 8 samples are not finite"), FailureKind.DIVERGED, False),
        (ValueError("batch_size 3 does not divide"), FailureKind.BAD_INPUT, False),
        (StoreError("base/x is not finished"), FailureKind.LOST_ARTIFACT, False),
        (torch.OutOfMemoryError("CUDA out of memory"), FailureKind.OUT_OF_MEMORY, False),
        (MemoryError(), FailureKind.OUT_OF_MEMORY, False),
        (RuntimeError("a worker is gone"), FailureKind.DIED, True),
        (OSError("No space left on device"), FailureKind.DIED, True),
    ],
)
def test_every_failure_has_a_kind_and_only_what_died_is_tried_again(error, kind, retried, tmp_path):
    assert kind_of(error) is kind and kind.is_retried is retried
    store = Store(tmp_path)
    try:
        raise error
    except Exception as caught:
        failure = failure_of(caught, "some-job", store)
    assert failure.log == f"{tmp_path}/logs/some-job.log" and "\n" not in failure.reason
    assert Path(failure.log).read_text().startswith("Traceback") and type(error).__name__ in Path(failure.log).read_text()
    assert Failure.from_json(failure.to_json()) == failure and failure.log in str(failure) and str(kind) in str(failure)


def test_a_process_that_left_only_a_text_has_died(tmp_path):
    failure = failure_of_text("Traceback ...\nray.exceptions.WorkerCrashedError: it was killed\n", "job", Store(tmp_path))
    assert (failure.kind, failure.reason) == (FailureKind.DIED, "ray.exceptions.WorkerCrashedError: it was killed")


def test_a_store_that_takes_no_log_does_not_hide_the_failure(tmp_path):
    (tmp_path / "logs").write_text("in the way")
    failure = failure_of(ValueError("what went wrong"), "job", Store(tmp_path))
    assert failure.log == "" and str(failure) == "bad input: what went wrong"


@pytest.fixture
def said(monkeypatch) -> list[dict]:
    reports: list[dict] = []
    monkeypatch.setattr(sweeps.execution.tune_run.tune, "report", lambda metrics, **options: reports.append(metrics))
    return reports


def trial(task: Task, store: Store) -> None:
    _trial(
        {
            "setup": _TrialSetup(
                task=task, group_size=0, gpus_per_worker=0.0, store_location=store.location, checkpoint_every_steps=4
            )
        }
    )


def test_a_trial_that_diverges_says_so_and_one_without_its_artifact_too(said, tmp_path):
    store = Store(tmp_path)
    trial(Task(job=tiny_base("scratch", steps=40, lr=1e18)), store)
    trial(Task(job=tiny_base("fine")), store)
    first, second = (Failure.from_json(report["failure"]) for report in said if "failure" in report)
    assert first.kind is FailureKind.DIVERGED and "try a lower learning rate" in first.reason
    assert second.kind is FailureKind.LOST_ARTIFACT and "learngene/" in second.reason


def test_a_trial_that_dies_is_left_to_tune(said, tmp_path, monkeypatch):
    def dies(*arguments, **options):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(sweeps.execution.tune_run, "run_task", dies)
    with pytest.raises(RuntimeError, match="out of luck"):
        trial(Task(job=tiny_base("scratch")), Store(tmp_path))
    assert not said and "out of luck" in (tmp_path / "logs" / f"{tiny_base('scratch').id}.log").read_text()


def sweep_over(plan, store: Store) -> tuple[Sweep, io.StringIO]:
    text = io.StringIO()
    at = Surroundings(
        name="test",
        params={},
        store=store,
        tracking=None,
        runner=RunnerSpec(),
        leases=Leases(store, "test"),
        databases=Path(store.root),
        data_folder=Path(store.root),
        console=Console(file=text, width=200),
    )
    return Sweep(GridAgenda(plan, store), at, lambda *a: 0), text


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Store:
    """A transfer, its base model, its learngene and their scores, all finished."""
    store = Store(tmp_path_factory.mktemp("finished"))
    transfer = tiny_transfer("difffit")
    needs = [ExtractorSpec(dataset="digits"), ExtractorSpec(dataset="digits-inverted"), tiny_learngene(), transfer.base]
    for job in (*needs, transfer, tiny_score(transfer), tiny_score(transfer.base)):
        compute(job, store, LocalContext(f"{store.root}/contexts/{job.id}"))
    return store


def plan_of(transfer):
    base = Task(job=transfer.base, scores=(tiny_score(transfer.base),))
    return Plan(tasks=plan_tasks([base, Task(job=transfer, scores=(tiny_score(transfer),))]))


def copied(store: Store, folder: Path) -> Store:
    return Store(shutil.copytree(store.root, folder))


def test_a_finished_sweep_has_nothing_to_do(finished, tmp_path):
    sweep, text = sweep_over(plan_of(tiny_transfer("difffit")), copied(finished, tmp_path / "store"))
    assert sweep._missing() == () and text.getvalue() == ""


def test_what_was_made_from_other_bytes_is_made_again(finished, tmp_path):
    store, transfer = copied(finished, tmp_path / "store"), tiny_transfer("difffit")
    folder = tmp_path / "other"
    folder.mkdir()
    shutil.copyfile(store.fetch(tiny_learngene(), LEARNGENE_FILE), folder / MODEL_FILE)  # any other bytes
    store.publish(transfer.base, folder, store.record(transfer.base))
    sweep, text = sweep_over(plan_of(transfer), store)
    missing = {job.id for task in sweep._missing() for job in task.jobs if store.read_record(job) is None}
    assert missing == {transfer.id, tiny_score(transfer).id, tiny_score(transfer.base).id}
    assert text.getvalue().count("was made from other bytes than those in the store; it is made again") == 3


def test_old_records_are_said_in_one_line(finished, tmp_path):
    store = copied(finished, tmp_path / "store")
    for number in range(2):
        (tmp_path / "store" / "trial" / str(number)).mkdir(parents=True)
        (tmp_path / "store" / "trial" / str(number) / "record.json").write_text('{"kind": "trial", "id": "x", "spec": {}}')
    sweep, text = sweep_over(plan_of(tiny_transfer("difffit")), store)
    sweep._say_old_records()
    assert text.getvalue() == "2 records of an older version are not used (2 trial)\n"


class TwoRanks(LocalContext):
    """A rank of two whose gathered items the test names."""

    def __init__(self, items: list) -> None:
        super().__init__("unused")
        self.items = items

    def gather(self, item):
        return [item, *self.items]


def test_what_one_rank_finds_ends_all_of_them():
    with pytest.raises(NotFinite, match="3 of 8 samples"):
        TwoRanks(["3 of 8 samples are not finite"]).raise_together(None)
    TwoRanks([None]).raise_together(None)


def test_ranks_that_see_other_artifacts_end_together(tmp_path):
    store, job = Store(tmp_path / "store"), tiny_base("fine")
    run_job(job.initialization.learngene, store, LocalContext(tmp_path / "work"), checkpoint_every_steps=4)
    seen = store.hashes_of(job.needs)
    assert _agreed_hashes(job, store, TwoRanks([None])) == seen
    other = TwoRanks(["worker 1 sees other files of learngene/x than the first one"])
    with pytest.raises(StoreError, match="worker 1 sees other files"):
        _agreed_hashes(job, store, other)
    late = TwoRanks([])
    late.agreed = lambda item: {folder: dict.fromkeys(hashes, "another") for folder, hashes in item.items()}
    with pytest.raises(StoreError, match="worker 0 sees other files of learngene/.*; run the same command again"):
        _agreed_hashes(job, store, late)
