"""Jobs end in the store with their record last; damage is found by hash; a finished job is not computed again."""

import json
import shutil

import pytest
from PIL import Image

from fine_core.checkpoints.native import load_model
from fine_core.files import file_bytes, sha256_of
from fine_core.initializers.fine.learngene import Learngene
from tests.tiny import compute, tiny_base, tiny_learngene, tiny_score
from trainables.jobs.registry import JOB_KINDS
from trainables.specs.scorers import ExtractorSpec
from trainables.storage.files import EXTRACTOR_FILE, LEARNGENE_FILE, MODEL_FILE, SAMPLES_FILE
from trainables.storage.record import Record
from trainables.storage.store import Store, StoreError
from trainables.training.context import LocalContext


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """A store with every artifact and two trials."""
    root = tmp_path_factory.mktemp("store")
    models = (tiny_base("fine"), tiny_base("scratch"))
    for job in (ExtractorSpec(dataset="digits"), tiny_learngene(), *models, *map(tiny_score, models)):
        compute(job, str(root), LocalContext(root / "scratch-pad" / job.id))
    return Store(root)


def test_a_base_model_and_its_score_leave_their_files_and_whole_records(store):
    base = tiny_base("fine")
    record, score = store.record(base), store.record(tiny_score(base))
    model = load_model(store.fetch(base, MODEL_FILE), expect=base.model)
    assert record.metrics["params_total"] == sum(p.numel() for p in model.parameters())
    assert record.metrics["serve_bytes"] == file_bytes(store.fetch(base, MODEL_FILE))
    assert record.metrics["initialize_bytes"] == file_bytes(store.fetch(tiny_learngene(), LEARNGENE_FILE))
    assert Image.open(store.fetch(tiny_score(base), SAMPLES_FILE)).size[0] > 64
    assert record.id == base.id and record.spec["seed"] == 0 and set(record.files) == {MODEL_FILE}
    assert {"fid", "kid", "eval_s"} <= set(score.metrics) and {"train_s", "macs", "peak_memory_bytes"} <= set(record.metrics)
    assert 50e6 < record.metrics["peak_memory_bytes"] < 20e9
    assert record.provenance["torch"] and score.protocol.num_samples == 20 and "20 samples" in str(score.protocol)
    assert record.history[-1]["step"] == 8 and record.protocol is None
    assert record.made_from == {tiny_learngene().folder: store.record(tiny_learngene()).hashes}
    assert set(score.made_from) == {base.folder, ExtractorSpec(dataset="digits").folder}
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_a_trial_from_scratch_needs_no_bytes_to_initialize(store):
    assert store.record(tiny_base("scratch")).metrics["initialize_bytes"] == 0


def test_the_stored_learngene_assembles(store):
    learngene = Learngene.load(store.fetch(tiny_learngene(), LEARNGENE_FILE))
    assert sorted(learngene.sigma) == [8, 16] and learngene.assemble(tiny_base().size).config == tiny_base().model


def test_the_extractor_is_accurate(store):
    assert store.record(ExtractorSpec(dataset="digits")).metrics["held_out_accuracy"] >= 0.97


def test_a_finished_job_is_not_computed_again(store, monkeypatch, tmp_path):
    monkeypatch.setattr(type(JOB_KINDS["base"]), "run", lambda *a: pytest.fail("computed again"))
    compute(tiny_base("fine"), store, LocalContext(tmp_path))


def test_same_trial_in_another_store_gives_the_same_model_and_score(store, tmp_path):
    other, trial = Store(tmp_path / "other"), tiny_base("scratch")
    for job in (ExtractorSpec(dataset="digits"), trial, tiny_score(trial)):
        compute(job, other, LocalContext(tmp_path / job.id), every=3)
    assert sha256_of(other.fetch(trial, MODEL_FILE)) == sha256_of(store.fetch(trial, MODEL_FILE))
    for score in ("fid", "kid"):
        assert other.record(tiny_score(trial)).metrics[score] == store.record(tiny_score(trial)).metrics[score]


def test_a_damaged_artifact_is_found_by_its_hash(store, tmp_path):
    copy = Store(tmp_path)
    shutil.copytree(f"{store.root}/extractor", tmp_path / "extractor")
    job = ExtractorSpec(dataset="digits")
    path = copy.fetch(job, EXTRACTOR_FILE)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        copy.fetch(job, EXTRACTOR_FILE)


def test_a_half_written_record_counts_as_not_finished(tmp_path):
    store, job = Store(tmp_path), tiny_base()
    folder = tmp_path / job.folder
    folder.mkdir(parents=True)
    assert store.read_record(job) is None
    (folder / "record.json").write_text('{"metrics": {')
    assert store.read_record(job) is None
    with pytest.raises(StoreError, match="not finished"):
        store.fetch(job, MODEL_FILE)


def write_checkpoint(root, attempt: str, job_id: str, *, step: int, whole: bool = True) -> str:
    folder = root / "tune" / attempt / job_id / "checkpoint_000000"
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(b"x" * (100 if whole else 60))
    (folder / "progress.json").write_text(json.dumps({"step": step, "state_bytes": 100}))
    return str(folder)


def test_the_furthest_whole_checkpoint_of_all_attempts_wins(tmp_path):
    store, job = Store(tmp_path), tiny_base()
    assert store.latest_checkpoint(job) is None
    write_checkpoint(tmp_path, "first", job.id, step=30)
    furthest = write_checkpoint(tmp_path, "second", job.id, step=50)
    write_checkpoint(tmp_path, "third", job.id, step=70, whole=False)  # its copy was cut off
    write_checkpoint(tmp_path, "third", "another-job", step=90)
    assert store.latest_checkpoint(job) == furthest
    store.delete_checkpoints(job)
    assert store.latest_checkpoint(job) is None and list((tmp_path / "tune").glob("*/another-job"))


@pytest.mark.parametrize("location", ["/proc/nowhere", "s4://bucket/x", "~nobody-of-this-name/x"])
def test_an_unusable_storage_path_is_refused_in_one_line(location):
    with pytest.raises(StoreError, match="cannot be written") as error:
        Store(location).check_writable()
    assert "\n" not in str(error.value)
