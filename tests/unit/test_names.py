"""Names that people give: folders with dots, quotes and wildcards, models in a registry, datasets of one name."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from fine_core.data.by_path import resolve
from fine_core.data.readers.base import Wanted
from fine_core.data.registry import short_name
from fine_core.text import file_name
from mlflow_setup.registry import check_model_name
from mlflow_setup.tracking import equal_to
from sweeps.pick import main as pick
from sweeps.results.picking import _callable_names
from sweeps.schedule_search import main as schedule_search
from sweeps.size_grid import main as size_grid
from tests.pictures import extractor_file, image_folder

ODD = ("pets", "pets.v1", "pets.v2", "it's", 'a "b"', "what?", "100%", "a b#c", "x[1]", "*")


def set_at(folder: Path) -> str:
    return resolve(f"imagefolder:{image_folder(folder, classes=1, per_class=1)}", wanted=Wanted(image_size=8), flips=False)


def test_short_names_tell_folders_apart(tmp_path):
    shorts = [short_name(set_at(tmp_path / name)) for name in ODD]
    assert shorts == [f"{name}-8" for name in ODD]


def test_two_sets_of_one_name_are_called_by_their_whole_names(tmp_path):
    names = [set_at(tmp_path / "a" / "pets"), set_at(tmp_path / "b" / "pets"), set_at(tmp_path / "b" / "cats")]
    assert _callable_names(names) == {names[0]: names[0], names[1]: names[1], names[2]: "cats-8"}


@pytest.mark.parametrize("text", ODD)
def test_a_file_name_has_no_signs_that_file_systems_and_shells_take_amiss(text):
    assert not set(file_name(f"{text}/x")) & set("/\\?*\"'<>| [](){}$`;&#%:")


def test_a_search_finds_a_dataset_whatever_its_name(tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("x", artifact_location=(tmp_path / "artifacts").as_uri())
    names = [*ODD, 'it\'s "both"']
    runs = {name: client.create_run(experiment, tags={"dataset": name}).info.run_id for name in names}
    for name, run in runs.items():
        found = client.search_runs([experiment], f"tags.`dataset` {equal_to(name)}")
        assert [one.info.run_id for one in found] == [run], name


@pytest.mark.parametrize("name", ["a/b", "models:/x", "it's", "", "  ", "x" * 300, 'say "x"'])
def test_a_name_that_the_registry_refuses_is_said_before_anything_is_written(name, tmp_path):
    answer = CliRunner().invoke(pick, ["--name", name, "--out", str(tmp_path / "out"), "--storage-path", str(tmp_path / "s")])
    assert answer.exit_code == 2 and answer.output.startswith("error: the model name"), answer.output
    assert not (tmp_path / "out").exists()


def test_usual_names_of_models_are_taken():
    for name in ("fine-sweeps", "pets.v2", "My model 1", "catalog.schema.model", "größe"):
        check_model_name(name)


@pytest.mark.parametrize("name", ODD)
def test_a_plan_is_made_in_places_of_any_name(name, tmp_path):
    images = image_folder(tmp_path / name / "images", classes=2, per_class=2)
    given = ["--dataset", f"imagefolder:{images}", "--image-size", "8", "--extractor", str(extractor_file(tmp_path / name))]
    answer = CliRunner().invoke(size_grid, [*given, "--dry-run", "--storage-path", str(tmp_path / name / "store")])
    if set(name) & set("%?"):
        assert answer.exit_code == 2 and answer.output.splitlines()[-1].startswith("error: "), answer.output
        assert "which starts a query" in answer.output or "which is an escape" in answer.output
    else:
        assert answer.exit_code == 0, answer.output
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("option", ["--tracking-uri", "--study-storage"])
@pytest.mark.parametrize("uri", ["sqlite:///{}/a?b/x.db", "sqlite:///{}/100%41/x.db"])
def test_a_database_that_would_lie_elsewhere_is_refused(option, uri, tmp_path):
    given = [option, uri.format(tmp_path), "--storage-path", str(tmp_path / "store"), "--dry-run"]
    answer = CliRunner().invoke(schedule_search, given)
    assert answer.exit_code == 2 and "in its path, which is an escape or a query" in answer.output, answer.output
    assert not list(tmp_path.glob("a*")) + list(tmp_path.glob("100*"))
