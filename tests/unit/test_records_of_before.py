"""Records of earlier versions, frozen: each is read, or counted and named."""

import json
import shutil
from pathlib import Path

import pytest

from tests.tiny import tiny_base
from trainables.jobs.registry import JOB_KINDS
from trainables.specs.from_record import OldRecord, job_from_record
from trainables.storage.record import Record
from trainables.storage.store import Store

FROZEN = Path(__file__).parents[1] / "records"


def frozen(version: str) -> list[Path]:
    return sorted((FROZEN / version).glob("*.json"))


def put(store: Path, path: Path) -> dict:
    content = json.loads(path.read_text())
    folder = store / content["kind"] / content["id"]
    folder.mkdir(parents=True)
    shutil.copyfile(path, folder / "record.json")
    return content


OF_TRANSFERS = ("transfer", "score-of-transfer", "score-of-rung")  # which have another version since


def kept(version: str) -> list[Path]:
    return [path for path in frozen(version) if version == "v5" or not path.stem.startswith(OF_TRANSFERS)]


@pytest.mark.parametrize("path", [*kept("v4"), *kept("v5")], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_record_is_read_and_keeps_its_id(path, tmp_path):
    content = put(tmp_path, path)
    job = job_from_record(content)
    assert job.id == content["id"] and job.kind == content["kind"]
    record = Store(tmp_path).record(job)
    assert record == Record.from_json(content) and record.metrics == content["metrics"]
    assert Store(tmp_path).count_old_records(JOB_KINDS, frozenset()) == {}


@pytest.mark.parametrize("path", [path for path in frozen("v4") if path not in kept("v4")], ids=lambda path: path.stem)
def test_a_transfer_of_version_4_and_its_scores_are_counted_and_named(path, tmp_path):
    content = put(tmp_path, path)
    with pytest.raises(OldRecord, match="a transfer of another version"):
        job_from_record(content)
    assert Store(tmp_path).count_old_records(JOB_KINDS, frozenset()) == {content["kind"]: 1}


@pytest.mark.parametrize("path", frozen("v3"), ids=lambda path: path.stem)
def test_a_record_of_version_3_is_counted_and_named(path, tmp_path):
    content = put(tmp_path, path)
    with pytest.raises(OldRecord, match="without a type tag"):
        job_from_record(content)
    store = Store(tmp_path)
    assert store.count_old_records(JOB_KINDS, frozenset()) == {content["kind"]: 1}
    assert list(store.records(content["kind"])) == []


def test_a_damaged_record_is_no_old_one_and_known_ids_are_not_read_again(tmp_path):
    for path in frozen("v3"):
        put(tmp_path, path)
    (tmp_path / "base" / "broken").mkdir(parents=True)
    (tmp_path / "base" / "broken" / "record.json").write_text('{"id": ')
    store = Store(tmp_path)
    assert sum(store.count_old_records(JOB_KINDS, frozenset()).values()) == len(frozen("v3"))
    known = frozenset(json.loads(path.read_text())["id"] for path in frozen("v3"))
    assert store.count_old_records(JOB_KINDS, known) == {}


def test_a_record_of_a_later_version_is_counted_too(tmp_path):
    content = put(tmp_path, FROZEN / "v4" / "base-scratch.json")
    content["spec"]["version"] += 1
    (tmp_path / "base" / content["id"] / "record.json").write_text(json.dumps(content))
    store = Store(tmp_path)
    assert store.count_old_records(JOB_KINDS, frozenset()) == {"base": 1} and store.read_record(tiny_base()) is None
