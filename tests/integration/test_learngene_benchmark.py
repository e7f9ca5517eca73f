"""Every initialization in one grid: from the artifacts to the tables, again, and with more scores on the way."""

import csv
import json

import pytest

from sweeps.command_line.presets import BENCHMARKED
from tests.commands import sweep

pytestmark = pytest.mark.slow

NAMES = BENCHMARKED.split(",")
SMALL = ["--preset", "learngene-benchmark", "--depths", "2,3", "--widths", "16", "--head-dim", "8", "--batch-size", "16"]
SMALL += ["--steps", "4", "--source-steps", "6", "--fine-sigma-steps", "2", "--per-layer-svd-sigma-steps", "2"]
SMALL += ["--wave-scaler-steps", "2", "--ligo-growth-steps", "2", "--num-samples", "24", "--sampling-steps", "2"]
SMALL += ["--source-seeds", "0,1"]


def table(report, name) -> list[dict[str, str]]:
    with (report / name).open() as file:
        return list(csv.DictReader(file))


def test_all_initializations_end_in_one_table_and_one_front_per_depth(tmp_path):
    store = tmp_path / "store"
    output = sweep(store, *SMALL, "--score-at", "0,2")
    assert "Initializations at L2-D16" in output and "Initializations at L3-D16" in output and "Costs of all sizes" in output
    (report,) = (store / "reports").iterdir()
    rows = table(report, "initializations.csv")
    assert {(row["initialization"], row["depth"]) for row in rows} == {(name, depth) for name in NAMES for depth in "23"}
    for row in rows:
        with_source = row["initialization"] not in ("scratch", "he", "mimetic", "full")
        assert (row["num_seeds"], row["num_source_seeds"]) == (("2", "2") if with_source else ("1", "1")), row
        free = {"0", "2", str(int(row["model_steps"]) - int(row["coefficient_steps"]))}
        assert set(json.loads(row["fid_at"])) == free and row["fid_start"] and bool(row["fid_stderr"]) == with_source
        assert float(row["one_off_steps"]) == (6 if with_source else 0)
        assert (int(row["initialize_bytes"]) > 0) == with_source
    costs = {row["initialization"]: row for row in table(report, "costs.csv")}
    full, tleg = costs["full"], costs["tleg"]
    assert float(full["total_steps"]) == 2 * 6 and float(tleg["total_steps"]) == 6 + 2 * 4
    assert float(tleg["times_fewer_steps"]) == pytest.approx(12 / 14)
    assert float(tleg["times_fewer_steps_without_one_off"]) == pytest.approx(12 / 8)
    dense = sum(int(row["serve_bytes"]) for row in rows if row["initialization"] == "tleg")
    assert float(tleg["times_fewer_bytes"]) == pytest.approx(dense / int(tleg["initialize_bytes"]))
    assert (report / "initializations.png").stat().st_size and (report / "costs.png").stat().st_size
    assert len(list(store.glob("ancestor/*/record.json"))) == 4, "of two sizes and two seeds, each for all that use it"

    models = sorted(store.glob("base/*/model.safetensors"))
    before = [path.stat().st_mtime_ns for path in models]
    sweep(store, *SMALL, "--score-at", "0,1,2", "--initializations", "tleg,fine")
    assert [path.stat().st_mtime_ns for path in sorted(store.glob("base/*/model.safetensors"))] == before, "trained again"
    (other,) = set((store / "reports").iterdir()) - {report}
    again = table(other, "initializations.csv")
    assert all({"0", "1", "2"} < set(json.loads(row["fid_at"])) for row in again)
    before = after_two_steps(rows)
    assert after_two_steps(again) == {(name, depth): before[name, depth] for name in ("tleg", "fine") for depth in "23"}


def after_two_steps(rows) -> dict[tuple[str, str], float]:
    return {(row["initialization"], row["depth"]): json.loads(row["fid_at"])["2"] for row in rows}
