"""Ids are stable hashes of content, specs come back from records as they were, bad values are refused where they enter."""

import json
from dataclasses import FrozenInstanceError, replace
from typing import ClassVar

import pytest

from fine_core.evaluation.protocol import EvaluationSpec
from fine_core.initializers.kept_blocks import KeptBlocks
from fine_core.initializers.tleg import Tleg
from fine_core.sampling.sampler import SamplerSpec
from tests.tiny import TINY_EVALUATION, tiny_bank, tiny_base, tiny_config, tiny_learngene, tiny_score, tiny_transfer
from trainables.specs.base import FileSpec, JobSpec, SourceSpec, TrainingSpec, VaeSpec
from trainables.specs.from_record import OldRecord, job_from_record
from trainables.specs.identity import TYPES, added, from_json, id_of, spec, to_json
from trainables.specs.inherited import AncestorSpec, InheritedSpec, InheritingSpec
from trainables.specs.models import DecompositionSpec, FineSpec, GivenSpec, MilestoneSpec, model_config
from trainables.specs.scorers import ExtractorSpec, GivenExtractorSpec
from trainables.specs.scores import null_label
from trainables.specs.transfers import RungSpec, TransferSpec


def test_equal_specs_have_equal_ids_and_any_change_makes_another():
    base = tiny_base()
    assert base.id == tiny_base().id and len(base.id) == 12
    others = [
        tiny_base("scratch"),
        tiny_base(seed=1),
        tiny_base(steps=9),
        replace(base, initialization=replace(base.initialization, learngene=tiny_learngene(steps=9))),
    ]
    assert len({base.id, *(other.id for other in others)}) == 5


def test_another_protocol_is_another_score_of_the_same_model():
    score = tiny_score(tiny_transfer("full"))
    others = [
        replace(score, evaluation=replace(score.evaluation, num_samples=21)),
        replace(score, evaluation=replace(score.evaluation, sampler=SamplerSpec(sampling_steps=3))),
        replace(score, evaluation=null_label(score.evaluation)),
        replace(score, extractor=ExtractorSpec(dataset="digits")),
        replace(score, seed=1),
        replace(score, replaced_steps=1),
        replace(score, scored=tiny_transfer("full", seed=1)),
        replace(score, scored=RungSpec(transfer=tiny_transfer("full"), step=2)),
    ]
    assert len({score.id, *(other.id for other in others)}) == 9
    assert {other.trained.id for other in others} == {score.scored.id, tiny_transfer("full", seed=1).id}


def test_ids_do_not_depend_on_the_process():
    """Frozen values: if one changes, a `version` or a spec did, and finished jobs of users are computed again."""
    assert tiny_base("scratch").id == "a0f270c81200"
    assert tiny_score(tiny_base("scratch")).id == "5378eaed41cc"


def test_specs_are_frozen():
    with pytest.raises(FrozenInstanceError):
        tiny_base().seed = 3


def test_a_model_names_what_it_needs_and_a_score_its_model():
    fine, scratch, transfer = tiny_base("fine"), tiny_base("scratch"), tiny_transfer("full")
    assert [need.kind for need in fine.needs] == ["learngene"]
    assert [need.kind for need in scratch.needs] == []
    assert tiny_score(scratch).needs == (ExtractorSpec(dataset="digits"), scratch)
    assert tiny_score(transfer).needs == (ExtractorSpec(dataset="digits-inverted"), transfer, transfer.base)
    rung = tiny_score(RungSpec(transfer=transfer, step=2), extractor=ExtractorSpec(dataset="digits-inverted"))
    assert rung.needs == (ExtractorSpec(dataset="digits-inverted"), transfer.base), "not the transfer, which it leads to"
    assert rung.run_id == transfer.run_id != tiny_score(transfer).run_id


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"steps": -1}, "steps is -1"), ({"steps": 1, "lr": 0}, "lr is 0"), ({"steps": 1, "ema_decay": 1}, "ema_decay")],
)
def test_bad_training_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainingSpec(**fields)


def test_sigma_steps_count_into_the_steps():
    with pytest.raises(ValueError, match="between 0 and steps"):
        tiny_base("fine", steps=3, sigma_steps=4)


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match="replaced_steps is 3; it must be 0 to 2"):
        tiny_score(tiny_transfer("full"), replaced_steps=3)
    with pytest.raises(ValueError, match="a rung at step 6 is not within the transfer's 6 steps"):
        RungSpec(transfer=tiny_transfer("full", steps=6), step=6)
    with pytest.raises(ValueError, match="num_samples is 3"):
        EvaluationSpec(num_samples=3, sampler=SamplerSpec(sampling_steps=2))


def test_unknown_dataset_is_refused():
    with pytest.raises(ValueError, match="unknown dataset 'cats'; choose one of digits"):
        model_config("cats", tiny_base().size, patch_size=2)


def tiny_specs() -> list[JobSpec]:
    """A job of every kind and shape."""
    base, transfer = tiny_base("fine"), tiny_transfer("diff-tuning")
    source = SourceSpec(sha256="a" * 64, model=tiny_config(depth=3))
    decomposition = DecompositionSpec(source=source, rank=16, nested_widths=(8,), als_sweeps=3)
    learngene = replace(tiny_learngene(), decomposition=decomposition, teacher_weight=0.5)
    file, vae = FileSpec(sha256="b" * 64, name="extractor.pt"), VaeSpec(sha256="c" * 64)
    extractor = ExtractorSpec(dataset="digits")
    given = GivenExtractorSpec(dataset="digits", extractor=file, format="torchscript", weights_sha256="d" * 64)
    rung = RungSpec(transfer=transfer, step=2)
    training = TrainingSpec(steps=6, batch_size=16)
    ancestor = AncestorSpec(dataset="digits", model=tiny_config(depth=3), training=training)
    own_form = InheritedSpec(
        initialization="tleg", form=Tleg(), dataset="digits", model=tiny_config(depth=3), training=training
    )
    kept = replace(own_form, initialization="heur-lg", form=KeptBlocks(blocks=1, top=True), ancestor=ancestor)
    inheriting = replace(base, initialization=InheritingSpec(name="heur-lg", inherited=kept))
    return [
        extractor, given, replace(given, reference=FileSpec(sha256="e" * 64, name="reference.npz"), vae=vae),
        file, vae, source, decomposition, tiny_learngene(), learngene,
        base, tiny_base("scratch"), replace(base, initialization=GivenSpec(source=source), training=TrainingSpec(steps=0)),
        replace(base, initialization=replace(base.initialization, learngene=learngene)),
        tiny_bank(base), transfer, tiny_transfer("difffit"), tiny_transfer("full", base=tiny_base("scratch")),
        tiny_score(base), tiny_score(transfer), tiny_score(transfer, replaced_steps=1), tiny_score(base, extractor=given),
        tiny_score(transfer, evaluation=null_label(TINY_EVALUATION), extractor=extractor),
        tiny_score(rung, extractor=ExtractorSpec(dataset="digits-inverted")),
        tiny_score(source), tiny_score(decomposition), tiny_score(learngene),
        ancestor, replace(ancestor, seed=1), own_form, kept, replace(kept, form=KeptBlocks(blocks=1, top=False)), inheriting,
        tiny_score(MilestoneSpec(base=base, step=3)), tiny_score(MilestoneSpec(base=inheriting, step=0)),
    ]  # fmt: skip


def record(job: JobSpec) -> dict:
    """What a record says of its job, as it is read from a file."""
    return json.loads(json.dumps({"kind": job.kind, "id": job.id, "spec": to_json(job)}))


@pytest.mark.parametrize("job", tiny_specs(), ids=lambda job: f"{job.kind} {job.id}")
def test_a_spec_comes_back_from_its_record(job):
    content = record(job)
    again = from_json(JobSpec, content["spec"])
    assert again == job == job_from_record(content) and type(again) is type(job)
    assert again.id == job.id and again.folder == job.folder
    for changes, message in (
        ({"id": "of another version"}, f"its spec has the id {job.id}, the record says of another version"),
        ({"spec": {**content["spec"], "new": 1}}, "unknown fields: new"),
        ({"spec": {**content["spec"], "type": "magic"}}, "no spec is known by the tag 'magic'"),
        ({"spec": {**content["spec"], "version": job.version + 1}}, "of another version"),
        ({"spec": {name: value for name, value in content["spec"].items() if name != "version"}}, "of another version"),
        ({"spec": {name: value for name, value in content["spec"].items() if name != "type"}}, "without a type tag"),
    ):
        with pytest.raises(OldRecord, match=message):
            job_from_record({**content, **changes})


def test_the_specs_are_all_different_and_of_every_kind():
    jobs = tiny_specs()
    assert len({job.id for job in jobs}) == len(jobs)
    kinds = {cls.kind for cls in TYPES.values() if hasattr(cls, "kind") and cls.__module__.startswith("trainables.")}
    assert {job.kind for job in jobs} == kinds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda base: base["training"].pop("steps"), "a training without steps"),
        (lambda base: base["training"].update(steps=-1), "steps is -1"),
        (lambda base: base["training"].update(speed=3), "a training with unknown fields: speed"),
        (lambda base: base["initialization"].update(type="magic"), "no spec is known by the tag 'magic'"),
        (lambda base: base["initialization"]["learngene"].update(version=3), "a learngene of another version"),
        (lambda base: base["initialization"]["learngene"].update(seed=1), "its spec has the id"),
        (lambda base: base["model"].update(depth=3), "unknown fields: depth"),
    ],
)
def test_a_record_with_a_part_that_is_not_known_is_of_another_version(change, message):
    content = record(tiny_base("fine"))
    assert job_from_record(content) == tiny_base("fine")
    change(content["spec"])
    with pytest.raises(OldRecord, match=message):
        job_from_record(content)


@pytest.mark.parametrize("content", [{}, {"spec": None, "id": "x"}, {"spec": {"type": "training", "steps": 1}, "id": "x"}])
def test_what_is_no_job_is_of_another_version(content):
    with pytest.raises(OldRecord):
        job_from_record(content)


@pytest.fixture
def own_tags():
    """Tags that a test takes are free again after it."""
    known = dict(TYPES)
    yield
    TYPES.clear()
    TYPES.update(known)


def test_a_tag_is_never_given_to_another_class(own_tags):
    with pytest.raises(ValueError, match="type tag 'training' is taken by TrainingSpec"):

        @spec("training")
        class Other:
            pass

    assert TYPES["training"] is TrainingSpec and to_json(TrainingSpec(steps=1))["type"] == "training"


def before() -> type:
    @spec("test-job")
    class Job(JobSpec):
        kind: ClassVar[str] = "test"
        steps: int

    return Job


def after(introduced, **options) -> type:
    """The same with a field that was added."""

    @spec("test-job")
    class Job(JobSpec):
        kind: ClassVar[str] = "test"
        steps: int
        extra: int | None = added(introduced, **options)

    Job.__qualname__ = Job.__qualname__.replace("after", "before")
    return Job


@pytest.mark.parametrize(("introduced", "options"), [(None, {}), (3, {}), (3, {"default": 5})])
def test_an_added_field_leaves_ids_and_records_as_they_were(own_tags, introduced, options):
    old = before()(steps=1)
    old_record = record(old)
    del TYPES["test-job"]
    new_class = after(introduced, **options)
    new = new_class(steps=1, extra=introduced)
    assert new.id == old.id and id_of(new) == id_of(old)
    assert new_class(steps=1, extra=7).id != old.id
    assert (new_class(steps=1).id == old.id) == ("default" not in options), "a default of today is not what records stand for"
    assert job_from_record(old_record) == new, "a record without it stands for the introduced value"
    for extra in (introduced, 7):
        job = new_class(steps=1, extra=extra)
        assert record(job)["spec"]["extra"] == extra and job_from_record(record(job)) == job


def test_an_added_field_of_a_part_leaves_the_id_of_the_whole(own_tags):
    def job_with(*, is_new: bool):
        TYPES.pop("test-part", None), TYPES.pop("test-job", None)

        @spec("test-part")
        class Part:
            size: int
            if is_new:
                extra: float = added(0.0, default=1.0)

        @spec("test-job")
        class Job(JobSpec):
            kind: ClassVar[str] = "test"
            part: Part

        Job.__annotations__["part"] = Part
        return Job(part=Part(size=1, **({"extra": 0.0} if is_new else {})))

    assert job_with(is_new=False).id == job_with(is_new=True).id


def test_a_field_with_a_default_is_part_of_the_id():
    """Only what was added later may be left out: a default that changes would otherwise change what an id stands for."""
    training = TrainingSpec(steps=1)
    assert id_of(training) != id_of(replace(training, weight_decay=0.1))
    content = to_json(training)
    del content["weight_decay"]
    with pytest.raises(ValueError, match="a training without weight_decay"):
        from_json(TrainingSpec, content)


def test_jobs_of_other_types_or_versions_have_other_ids(own_tags):
    base = tiny_base("scratch")
    newer = type("Newer", (type(base),), {"version": base.version + 1})
    values = {name: getattr(base, name) for name in ("initialization", "model", "dataset", "training", "seed")}
    assert newer(**values).id != base.id == type(base)(**values).id
    assert FineSpec.type_tag != TransferSpec.type_tag
