"""The real command on real Ray clusters into a real MLflow store."""

import csv
import json
import re
import signal
import subprocess
import sys

import pytest

from tests.commands import PATIENCE_S, ROOT, TRANSFER, environment, matches, runs, start, sweep, wait_for, weights

pytestmark = pytest.mark.slow


def test_a_grid_reports_everything_and_another_computes_only_what_is_missing(tmp_path):
    store = tmp_path / "store"
    grid = ["--depths", "1,2", "--methods", "fine", "--runner", "tune"]
    output = sweep(store, *grid)
    assert "points; 6 of 6 jobs to compute" in output and re.search(r"\* +fine L\d-D16", output)

    client, (parent,), children = runs(store)
    assert parent.info.status == "FINISHED" and len(children) == 2
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"pareto.csv", "pareto.png", "pareto.html", "ledger.csv", "samples"} == artifacts
    samples = {file.path for file in client.list_artifacts(parent.info.run_id, "samples")}
    assert samples == {"samples/fine-L1-D16-seed-0.png", "samples/fine-L2-D16-seed-0.png"}
    for child in children:
        assert child.info.status == "FINISHED" and child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        tags = {"trial_id", "method", "initialization", "transfer", "depth", "width", "dataset", "protocol", "pareto"}
        assert tags <= set(child.data.tags) and child.data.tags["pareto"] in ("true", "false")
        metrics = {
            "fid",
            "kid",
            "precision",
            "recall",
            "params_total",
            "params_trainable",
            "macs",
            "serve_bytes",
            "initialize_bytes",
        }
        metrics |= {"train_s", "eval_s", "peak_memory_bytes", "train/loss", "train/steps_per_s"}
        assert metrics <= set(child.data.metrics)
        steps = [m.step for m in client.get_metric_history(child.info.run_id, "train/loss")]
        assert steps == sorted(set(steps)) and steps[-1] == 12
        assert [file.path for file in client.list_artifacts(child.info.run_id, "samples")] == ["samples/samples.png"]
        for metric in ("serve_bytes", "params_total"):
            record = json.loads((store / "base" / child.data.tags["trial_id"] / "record.json").read_text())
            assert child.data.metrics[metric] == record["metrics"][metric]
    view = next(v for k, v in client.get_experiment(parent.info.experiment_id).tags.items() if "sharedViewState" in k)
    chart = json.loads(json.loads(view)["state"])["compareRunCharts"][0]
    assert (chart["xaxis"]["key"], chart["yaxis"]["key"]) == ("params_total", "fid")

    (report,) = (store / "reports").iterdir()
    rows = list(csv.DictReader((report / "pareto.csv").open()))
    assert [row["label"] for row in rows] == ["fine L1-D16", "fine L2-D16"]
    assert not any((store / "tune").glob("*")), "checkpoints of finished jobs are deleted"

    before = {file: file.stat().st_mtime_ns for file in store.rglob("record.json")}
    output = sweep(store, *grid)
    assert "0 of 6 jobs to compute" in output and "starting Ray" not in output
    assert {file: file.stat().st_mtime_ns for file in store.rglob("record.json")} == before
    _, (again,), children_again = runs(store)
    assert again.info.run_id == parent.info.run_id and again.info.status == "FINISHED"
    assert {c.info.run_id for c in children_again} == {c.info.run_id for c in children}

    output = sweep(store, *grid, "--seeds", "0,1")
    assert "4 points; 4 of 10 jobs to compute" in output and " ± " in output, "two seeds give a standard error"
    _, parents, children = runs(store)
    assert len(parents) == 2 and len(children) == 2 + 4, "each sweep lists all of its points"


def test_interrupted_and_run_again_equals_uninterrupted(alone, tmp_path):
    store = tmp_path / "store"
    # A cadence of its own: a checkpoint after every step, so that the signal finds a trial between two of them.
    options = ["--runner", "tune", "--max-concurrent", "1", "--checkpoint-every-steps", "1"]
    with start(store, *options) as process:
        wait_for(lambda: matches(store, "tune/*/*.base/checkpoint_*/progress.json"), "a checkpoint", process=process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, output
    assert "run the same command again" in output and "Traceback" not in output
    client, (parent,), children = runs(store)
    assert parent.info.status == "KILLED" and children and all(c.info.status in ("KILLED", "FINISHED") for c in children)

    sweep(store, *options)
    assert weights(store) == weights(alone)
    client, (parent,), children = runs(store)
    assert parent.info.status == "FINISHED" and {c.info.status for c in children} == {"FINISHED"} and len(children) == 2
    for child in children:
        steps = [m.step for m in client.get_metric_history(child.info.run_id, "train/loss")]
        assert sorted(steps) == list(range(1, 13)), "no step is lost and none is logged twice"


def test_a_sweep_without_a_cluster_listens_on_loopback_only(tmp_path):
    code = """
from sweeps.execution.cluster import connect_cluster
import ray, psutil
connect_cluster()
mine = [psutil.Process(), *psutil.Process().children(recursive=True)]
connections = [c for p in mine for c in p.net_connections("tcp") if c.status == "LISTEN"]
print({c.laddr.ip.removeprefix("::ffff:") for c in connections}, ray.nodes()[0]["NodeManagerAddress"])
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert result.stdout.strip() == "{'127.0.0.1'} 127.0.0.1", result.stdout + result.stderr


def test_the_transfer_stage_reports_fronts_of_every_method_and_the_curve_reuses_its_points(tmp_path):
    store = tmp_path / "store"
    options = [*TRANSFER, "--runner", "tune", "--methods", "fine"]
    methods = ["--transfer", "full,difffit,fine-sigma,diff-tuning+difffit", "--schedules", "linear,power:0.5,constant"]
    output = sweep(store, *options, *methods)
    assert "7 points; 25 of 25 jobs to compute" in output
    assert "Points on digits (" in output and "Points on digits-inverted (" in output and "source FID" in output
    assert re.search(r"full L2-D16 +15,204 +\d+\.\d{3} +6\d,\d{3} +14,948 +\d+\.\d -> \d+\.\d", output), output
    assert re.search(r"fine-sigma L2-D16 +15,204 +\d+\.\d{3} +1,\d{3} +160 ", output), output

    client, (parent,), children = runs(store)
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    fronts = {f"pareto{target}.{kind}" for target in ("", "-digits-inverted") for kind in ("csv", "png", "html")}
    assert artifacts == {*fronts, "ledger.csv", "samples", "schedules.png"}
    assert len(children) == 7 and {child.info.status for child in children} == {"FINISHED"}
    by_method = {child.data.tags["method"]: child for child in children}
    tuned = by_method["diff-tuning+difffit power:0.5"]
    assert tuned.data.tags["transfer"] == "diff-tuning+difffit" and tuned.data.params["diff-tuning.schedule"] == "power:0.5"
    assert tuned.data.metrics["serve_bytes"] < 0.2 * by_method["full"].data.metrics["serve_bytes"]
    assert tuned.data.metrics["bank_bytes"] > 0 and tuned.data.metrics["forgetting/source_fid"] > 0
    rows = list(csv.DictReader((next(store.glob("reports/*")) / "pareto-digits-inverted.csv").open()))
    assert len(rows) == 6 and any(row["front_params_total"] == "True" for row in rows)

    curve = sweep(store, *options, "--transfer", "full,difffit", "--shares", "0,0.5,1", script="forgetting_curve")
    assert "4 of 16 jobs to compute" in curve and "12 of 16 jobs are in the store already" in curve
    _, (parent,), _ = runs(store, "forgetting-curve")
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"forgetting.csv", "forgetting.png"} <= artifacts
    rows = list(csv.DictReader(next(store.glob("reports/*/forgetting.csv")).open()))
    by_share = {(row["method"], row["share"]): float(row["fid"]) for row in rows}
    assert by_share["full", "0.0"] == pytest.approx(by_method["full"].data.metrics["fid"])
    assert by_share["full", "1.0"] == by_share["difffit", "1.0"], "the base model alone, whoever was tuned"
