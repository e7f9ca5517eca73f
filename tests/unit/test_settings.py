"""What a search found, on its way into a grid."""

import json
from dataclasses import replace

import optuna
import pytest

from sweeps.planning.plan import plan_grid
from sweeps.planning.settings import TunedTransfer, read_tuned, write_tuned
from tests.searches import GRID, spec


def test_what_a_search_found_is_the_same_point_in_a_grid(tmp_path):
    study = spec()
    asked = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    found = study.space.settings({**study.space.suggest(asked.ask()), "family": "power", "power": 1 / 3})
    tuned = TunedTransfer(method="diff-tuning", initialization="fine", size="L2-D32", settings=found)
    path = write_tuned(tmp_path / "best.json", [(tuned, {"fid": 1.0})])
    assert read_tuned(path) == (tuned,) and '"power:0.333"' in path.read_text()

    grid = replace(GRID, transfer=replace(GRID.transfer, methods=("full",), tuned=read_tuned(path)))
    plan = plan_grid(grid)
    names = {point.id: plan.names.of(point.model) for point in plan.points}
    transfers = [task.job for task in plan.stages["transfer"]]
    (same,) = (job for job in transfers if job.size.name == "L2-D32" and names[job.id] == "diff-tuning tuned")
    assert same.training.lr == found.lr and same.options == found.options
    assert same.base.initialization.sigma_steps == found.start["sigma_steps"]
    # Searched at one size, it serves all; its base models are points of their own name, unless they are the grid's.
    assert sum(name == "diff-tuning tuned" for name in names.values()) == 4
    assert sum(name == "fine" for name in names.values()) == 4
    assert sum(name == f"fine {found.start['sigma_steps']} sigma steps" for name in names.values()) == (
        0 if found.start["sigma_steps"] == GRID.options.values["fine.sigma_steps"][0] else 4
    )
    assert all(need.id in {job.id for job in plan.jobs} for task in plan.tasks for need in task.needs)

    labels = [plan.labels[task.id] for task in plan.tasks]
    assert len(set(labels)) == len(labels), "nothing is called like another"
    with pytest.raises(ValueError, match="settings of diff-tuning at L2-D32 come twice; name one file for them"):
        replace(grid.transfer, tuned=(tuned, tuned))
    with pytest.raises(ValueError, match="found for base models of scratch; add --transfer-from scratch"):
        replace(grid.transfer, tuned=(replace(tuned, initialization="scratch"),))
    both = write_tuned(tmp_path / "two.json", [(tuned, {}), (replace(tuned, size="L4-D64"), {})])
    with pytest.raises(
        ValueError, match="no settings of diff-tuning for L2-D64, only for L2-D32, L4-D64; search that size too"
    ):
        plan_grid(replace(grid, transfer=replace(grid.transfer, tuned=read_tuned(both))))


def tuned_text(**changes) -> str:
    settings = {"schedule": "linear", "retention_weight": 0.1, "source_ratio": 0.2, "gamma_span": 0.5, "lr": 1e-3}
    entry = {"method": "diff-tuning+difffit", "initialization": "fine", "size": "L2-D32", "settings": settings | changes}
    return json.dumps({"format": 1, "tuned": [entry]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is not a best.json of schedule_search.py"),
        ("[]", "is not a best.json of schedule_search.py"),
        ('{"format": 7, "tuned": []}', "its format is 7, this version reads 1 and 2"),
        ('{"format": 1, "tuned": []}', "it holds no settings"),
        (tuned_text(sigma_steps="x"), "sigma_steps is 'x'; it must be a whole number"),
        (tuned_text(schedule=5), "schedule is 5; it must be a text"),
        (tuned_text(gamma_span=7), "gamma_span is 7; it must be between 0 and 1"),
        (tuned_text(lr="fast"), "lr is 'fast'; it must be a number"),
        ('{"format": 1, "tuned": [{"method": "full"}]}', "is not a best.json of schedule_search.py (KeyError: 'settings')"),
    ],
)
def test_a_bad_schedules_file_is_one_line(tmp_path, content, message):
    path = tmp_path / "best.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError) as error:
        read_tuned(path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_before_is_read(tmp_path):
    path = tmp_path / "best.json"
    path.write_text(tuned_text(schedule="power:0.5", sigma_steps=200))
    (tuned,) = read_tuned(path)
    settings = {"schedule": "power:0.5", "weighting": "sampling", "retention_weight": 0.1, "source_ratio": 0.2}
    assert tuned.settings.plain() == {**settings, "gamma_span": 0.5, "lr": 1e-3, "sigma_steps": 200}
    again = write_tuned(tmp_path / "again.json", [(tuned, {})])
    assert read_tuned(again) == (tuned,) and '"format": 2' in again.read_text()
