"""One conformance suite for every kind of job."""

from pathlib import Path

import pytest

from fine_core.dit import count_macs
from fine_core.initializers.kept_blocks import KeptBlocks
from sweeps.planning.plan import plan_tasks
from tests.tiny import compute, tiny_bank, tiny_base, tiny_config, tiny_learngene, tiny_score, tiny_transfer
from trainables.jobs.kind import Role
from trainables.jobs.registry import JOB_KINDS, kind_of
from trainables.jobs.run import load_served
from trainables.specs.base import FileSpec, JobSpec, TrainingSpec, VaeSpec
from trainables.specs.inherited import AncestorSpec, InheritedSpec
from trainables.specs.scorers import ExtractorSpec
from trainables.specs.tasks import Task
from trainables.storage.store import Store
from trainables.training.context import LocalContext


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Store, list[JobSpec]]:
    """A store with a job of every kind that is computed from images alone."""
    store = Store(tmp_path_factory.mktemp("store"))
    extractor = [ExtractorSpec(dataset=name) for name in ("digits", "digits-inverted")]
    base, transfer = tiny_base("fine"), tiny_transfer("diff-tuning")
    ancestor = AncestorSpec(dataset="digits", model=tiny_config(depth=3), training=TrainingSpec(steps=6, batch_size=16))
    inherited = InheritedSpec(
        initialization="heur-lg",
        form=KeptBlocks(blocks=1, top=True),
        dataset="digits",
        model=ancestor.model,
        training=TrainingSpec(steps=0),
        ancestor=ancestor,
    )
    jobs = [*extractor, tiny_learngene(), base, tiny_bank(base), transfer, tiny_score(transfer), ancestor, inherited]
    for job in jobs:
        compute(job, store, LocalContext(Path(store.root) / "contexts" / job.id))
    return store, jobs


def test_names_are_those_of_the_specs_and_folders():
    assert all(name == kind.name for name, kind in JOB_KINDS.items())
    assert {need.kind for need in tiny_transfer("diff-tuning").needs} <= set(JOB_KINDS)


def test_what_a_kind_says_that_it_keeps_is_stored_with_the_seconds_that_it_took(finished):
    store, jobs = finished
    kept = {job.kind: kind_of(job).kept for job in jobs if kind_of(job).kept is not None}
    assert {name: file.role for name, file in kept.items()} == {
        "learngene": Role.INITIALIZE,
        "ancestor": Role.INITIALIZE,
        "inherited": Role.INITIALIZE,
        "bank": Role.INITIALIZE,
        "base": Role.SERVE,
        "transfer": Role.SERVE,
    }
    for job in jobs:
        if (file := kind_of(job).kept) is not None:
            record = store.record(job)
            assert record.files[file.file].bytes > 0 and record.metrics[file.seconds] > 0
            predicted = kind_of(job).result_bytes(job)
            exact = file.role is Role.SERVE
            assert predicted == record.files[file.file].bytes if exact else predicted > 0


def test_what_may_go_once_nothing_reads_it_is_a_file():
    passing = [kind for kind in JOB_KINDS.values() if kind.is_passing]
    assert {kind.name for kind in passing} == {"ancestor", "bank"} and all(kind.kept is not None for kind in passing)


def test_predicted_work_is_that_of_its_steps_and_images(finished):
    _, jobs = finished
    for job in jobs:
        work = kind_of(job).work(job)
        if work.model is None:
            assert work.macs == 0 and work.core_s > 0
            continue
        passes = 3 * work.steps * work.batch_size + work.images * (work.sampler.passes_per_sample if work.sampler else 0)
        assert work.macs == count_macs(work.model) * passes
        assert (work.macs > 0 and work.core_s > 0) or job.kind == "inherited", "taken from an ancestor without a step"


def test_models_that_can_be_scored_are_served(finished):
    store, jobs = finished
    for job in jobs:
        if kind_of(job).is_score or job.kind in ("extractor", "bank", "inherited"):
            with pytest.raises(TypeError, match="makes no model"):
                load_served(job, store)
        else:
            assert load_served(job, store).config == job.model


def test_what_is_given_is_not_computed():
    for job in (FileSpec(sha256="a" * 64, name="x"), VaeSpec(sha256="b" * 64)):
        assert job.is_given and plan_tasks([Task(job=tiny_base("scratch"))])[0].job.kind == "base"
        with pytest.raises(TypeError, match="is given, not computed"):
            kind_of(job).run(job, None)
