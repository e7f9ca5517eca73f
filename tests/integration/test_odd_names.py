"""A storage path with every sign that URIs, shells and file systems take for something else: all is found where it belongs."""

import subprocess
import sys

import mlflow
import optuna
import pytest

from fine_core.text import sqlite_uri
from tests.commands import PATIENCE_S, ROOT, TRANSFER, environment, sweep

pytestmark = pytest.mark.slow
ODD = "it's a=b #1 [x] ü"


def test_all_lies_in_the_storage_path_whatever_its_name(tmp_path):
    store = tmp_path / ODD / "store"
    store.parent.mkdir()
    grid = ["--initializations", "fine", "--target", "digits-inverted"]
    said = sweep(store, *grid)
    assert f"{store}/reports/" in said, said
    sweep(store, *TRANSFER, "--transfer", "difffit", "--trials", "2", "--no-early-stopping", script="schedule_search")
    pick = [sys.executable, str(ROOT / "sweeps/pick.py"), "--storage-path", str(store), "--dataset", "digits"]
    said = subprocess.run(pick, cwd=store.parent, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S)
    assert said.returncode == 0 and f"version 1 in {sqlite_uri(store / 'mlflow.db')}" in said.stdout, said
    assert [entry.name for entry in tmp_path.iterdir()] == [ODD]
    client = mlflow.MlflowClient(sqlite_uri(store / "mlflow.db"))
    for name in ("size-grid", "schedule-search", "pick"):
        experiment = client.get_experiment_by_name(name)
        (parent, *_) = client.search_runs([experiment.experiment_id], "tags.sweep_id != ''") or client.search_runs(
            [experiment.experiment_id]
        )
        assert client.list_artifacts(parent.info.run_id), name
    assert len(optuna.get_all_study_names(sqlite_uri(store / "optuna.db"))) == 1
