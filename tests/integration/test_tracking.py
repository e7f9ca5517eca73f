"""The real command into a real MLflow server that goes away for the whole middle of the sweep."""

import json
import subprocess

import mlflow
import pytest

from tests.commands import PATIENCE_S, TRANSFER, command, environment, matches, wait_for
from tests.servers import MlflowServer, postgresql
from trainables.storage.store import Store

pytestmark = pytest.mark.slow
NUM_STEPS = 12


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request, tmp_path):
    if request.param == "sqlite":
        server = MlflowServer(tmp_path, f"sqlite:///{tmp_path}/server.db")
        yield server
        server.kill()
        return
    with postgresql() as address:
        server = MlflowServer(tmp_path, address)
        yield server
        server.kill()


def test_a_server_that_is_away_for_the_middle_of_a_sweep_loses_nothing(server, tmp_path):
    store = tmp_path / "store"
    # A report after every step; one job at a time, so that most of the sweep is after the server's end.
    options = ["--runner", "tune", "--seeds", "0,1", "--checkpoint-every-steps", "1", "--max-concurrent", "1"]
    started = {"cwd": tmp_path, "env": environment() | {"MLFLOW_TRACKING_URI": server.uri}, "text": True}
    server.start()
    server.wait()
    with subprocess.Popen(command(store, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **started) as process:
        wait_for(lambda: matches(store, "tune/*/*.base/checkpoint_*"), "a checkpoint", process=process)
        server.kill()
        wait_for(lambda: len(matches(store, "score/*/record.json")) == 4, "four results", process=process)
        lines = [line for file in store.glob("spool/*.jsonl") for line in file.read_text().splitlines()]
        spooled = [json.loads(line.partition(" ")[2]) for line in lines]  # after its checksum
        server.start()
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert output.count("MLflow does not take records") == 1 and "Traceback" not in output and "Retry" not in output
    assert sum(entry.get("action") == "log" for entry in spooled) > 30 and sum(e.get("action") == "end" for e in spooled) >= 3
    server.wait()

    again = subprocess.run(command(store, *options), capture_output=True, timeout=PATIENCE_S, **started)
    assert again.returncode == 0 and "0 of 10 jobs to compute" in again.stdout, again.stdout + again.stderr
    assert not list(store.glob("spool/*"))
    client = mlflow.MlflowClient(server.uri)
    found = client.search_runs([client.get_experiment_by_name("size-grid").experiment_id])
    (parent,) = (run for run in found if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in found if run is not parent]
    assert len(children) == 4 and {run.info.status for run in found} == {"FINISHED"}
    for child in children:
        record = json.loads((store / "base" / child.data.tags["trial_id"] / "record.json").read_text())
        for key in ("train/loss", "train/steps_per_s"):
            history = client.get_metric_history(child.info.run_id, key)
            assert [metric.step for metric in history] == list(range(1, NUM_STEPS + 1)), "in order, and each step once"
            assert [metric.value for metric in history] == [entry[key] for entry in record["history"]]
        (score,) = (s for job, s in Store(store).records("score") if job.scored.id == child.data.tags["trial_id"])
        separate = {
            name: v for name, v in (record["metrics"] | score.metrics).items() if name not in ("job_s", "peak_memory_bytes")
        }
        for key, value in separate.items():
            assert [metric.value for metric in client.get_metric_history(child.info.run_id, key)] == [value]
        assert child.data.params and child.data.tags["pareto"] in ("true", "false")
        assert [file.path for file in client.list_artifacts(child.info.run_id, "samples")] == ["samples/samples.png"]
        times = child.info.start_time, *(metric.timestamp for metric in history), child.info.end_time
        assert list(times) == sorted(times), "when it happened, not when it was written"
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert artifacts == {"pareto.csv", "pareto.png", "pareto.html", "ledger.csv", "samples"}
    assert len(client.list_artifacts(parent.info.run_id, "samples")) == 4
    assert "locked" not in server.log.read_text()


def test_a_password_of_the_tracking_server_is_nowhere(tmp_path):
    server, store, password = MlflowServer(tmp_path, f"sqlite:///{tmp_path}/server.db"), tmp_path / "store", "S3cr3t-of-mine"
    server.start()
    try:
        server.wait()
        uri = server.uri.replace("://", f"://someone:{password}@")
        for script in ("size_grid", "schedule_search"):
            more = [] if script == "size_grid" else [*TRANSFER, "--transfer", "difffit", "--trials", "1"]
            arguments = command(store, *more, "--tracking-uri", uri, "--runner", "tune", script=script)
            settings = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True, "timeout": PATIENCE_S}
            done = subprocess.run(arguments, **settings)
            assert done.returncode == 0 and password not in done.stdout + done.stderr, done.stdout + done.stderr
        client = mlflow.MlflowClient(server.uri)
        assert {found.name for found in client.search_experiments()} >= {"size-grid", "schedule-search"}
    finally:
        server.kill()
    holds = [file for file in tmp_path.rglob("*") if file.is_file() and password.encode() in file.read_bytes()]
    assert not holds, "neither the store nor the server's database or artifacts have it"
