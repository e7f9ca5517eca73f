"""Initializations side by side: rows from records, ratios of costs, and the standard error over source seeds."""

from types import SimpleNamespace

import pytest
from rich.console import Console

from mlflow_setup.initializations import draw_costs, draw_initializations
from sweeps.display.initializations import show_costs, show_initializations
from sweeps.results.initializations import cost_rows
from sweeps.results.pareto import standard_error, standard_error_of


def row(name: str, depth: int, **changes):
    values = {
        "initialization": name,
        "depth": depth,
        "width": 64,
        "fid_start": 90.0,
        "fid_at": {0: 50.0, 10: 20.0, 30: 10.0},
        "fid": 10.0,
        "fid_stderr": None,
        "num_seeds": 1,
        "num_source_seeds": 1,
        "coefficient_steps": 5,
        "model_steps": 35,
        "model_s": 7.0,
        "one_off_steps": 300.0,
        "one_off_s": 60.0,
        "initialize_bytes": 1_000,
        "serve_bytes": 700 * depth,
        "steps_to_reference": 10,
        "protocol": "toy | 10 samples",
    }
    return values | changes


def full(depth: int):
    nothing = {"one_off_steps": 0.0, "one_off_s": 0.0, "coefficient_steps": 0, "initialize_bytes": 0}
    return row("full", depth, model_steps=300, fid_at={0: 90.0, 10: 60.0, 300: 3.0}, fid=3.0, **nothing)


ROWS = [row("fine", 2), row("fine", 4), full(2), full(4)]


def test_costs_count_the_one_off_once_and_every_size():
    costs = {found["initialization"]: found for found in cost_rows(ROWS)}
    fine = costs["fine"]
    assert (fine["num_sizes"], fine["one_off_steps"], fine["steps_of_sizes"], fine["total_steps"]) == (2, 300, 70, 370)
    assert fine["times_fewer_steps"] == pytest.approx(600 / 370)
    assert fine["times_fewer_steps_without_one_off"] == pytest.approx(600 / 70)
    assert fine["times_fewer_bytes"] == pytest.approx(700 * 6 / 1_000) and fine["total_s"] == 60 + 2 * 7
    assert costs["full"]["times_fewer_steps"] == 1 and costs["full"]["times_fewer_bytes"] is None


def test_without_full_pretraining_there_is_nothing_to_compare_steps_with():
    (fine,) = cost_rows(ROWS[:2])
    assert fine["times_fewer_steps"] is None and fine["times_fewer_bytes"] == pytest.approx(4.2)


def test_models_of_one_source_are_no_independent_repeats():
    def result(fid, source_seed):
        initialization = SimpleNamespace(source_seed=source_seed)
        return SimpleNamespace(job=SimpleNamespace(initialization=initialization), metrics={"fid": fid})

    of_two = [result(1.0, 0), result(1.2, 0), result(3.0, 1), result(3.2, 1)]
    assert standard_error_of(of_two) == pytest.approx(standard_error([1.1, 3.1]))
    assert standard_error_of(of_two[:2]) == pytest.approx(standard_error([1.0, 1.2]))
    assert standard_error_of(of_two[:1]) is None


def test_tables_and_pictures_say_what_is_in_the_rows(tmp_path):
    console = Console(width=160, record=True, force_terminal=False)
    show_initializations(console, ROWS)
    show_costs(console, cost_rows(ROWS))
    text = console.export_text()
    fine = next(line for line in text.splitlines() if line.split()[:1] == ["fine"])
    assert fine.split() == ["fine", "90.00", "50.00", "20.00", "10.000", "10", "1,000", "300"]
    assert "3.000 (after 300)" in text and "Initializations at L4-D64" in text
    assert "1.62 x" in text and "8.57 x" in text and "4.20 x" in text
    for draw, name in ((draw_initializations, "initializations.png"), (draw_costs, "costs.png")):
        assert draw(ROWS, tmp_path / name).stat().st_size > 10_000
