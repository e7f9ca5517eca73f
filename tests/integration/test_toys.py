"""What is registered costs one module and one registry line: toys of all kinds in a real grid and a real search.

The packages are copied, the toys' modules and lines are added to the copy, and the commands run from there.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.commands import PATIENCE_S, ROOT, environment
from tests.pictures import extractor_file
from trainables.storage.store import Store

pytestmark = pytest.mark.slow

# (module of tests/toys, its place in the copy, registry, what the line is put before, the import, the line)
TOYS = [
    (
        "initialization.py",
        "trainables/initializations/toy.py",
        "trainables/initializations/__init__.py",
        "        Given(),\n",
        "from trainables.initializations.toy import Toy\n",
        "        Toy(),\n",
    ),
    (
        "transfer.py",
        "trainables/methods/toy.py",
        "trainables/methods/__init__.py",
        "        VPTDeep(),\n",
        "from trainables.methods.toy import ToyLast\n",
        "        ToyLast(),\n",
    ),
    (
        "metric.py",
        "fine_core/evaluation/metrics/toy.py",
        "fine_core/evaluation/metrics/__init__.py",
        "        MIND,\n",
        "from fine_core.evaluation.metrics.toy import TOY\n",
        "        TOY,\n",
    ),
    (
        "reader.py",
        "fine_core/data/readers/toy.py",
        "fine_core/data/readers/registry.py",
        '    "parquet": _parquet,\n',
        "from fine_core.data.readers.toy import NpyReader\n",
        '    "npy": NpyReader,\n',
    ),
]
VELOCITY = ROOT / "tests/velocity.py"  # the toy parameterization, with a sampler that fits it


def with_import(text: str, line: str) -> str:
    return text.replace("from __future__ import annotations\n", f"from __future__ import annotations\n\n{line}", 1)


@pytest.fixture(scope="module")
def code(tmp_path_factory) -> Path:
    """A copy of the packages with the toys."""
    root = tmp_path_factory.mktemp("code")
    for package in ("fine_core", "trainables", "sweeps", "mlflow_setup"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    for module, place, registry, before, imports, line in TOYS:
        shutil.copyfile(ROOT / "tests/toys" / module, root / place)
        text = (root / registry).read_text()
        assert text.count(before) == 1
        (root / registry).write_text(with_import(text.replace(before, line + before), imports))
    add_velocity(root)
    return root


def add_velocity(root: Path) -> None:
    source = VELOCITY.read_text()
    velocity = source[source.index("def _wide") : source.index("class Euler")]
    euler = source[source.index("class Euler") : source.index("def register_velocity")]
    folder = root / "fine_core/parameterizations"
    base = "from fine_core.parameterizations.base import Parameterization\n"
    (folder / "toy.py").write_text(f'"""Toy."""\n\nimport torch\n\n{base}\n\n{velocity}')
    text = (folder / "__init__.py").read_text()
    assert "(DDPM(),)" in text
    imports = "from fine_core.parameterizations.toy import Velocity\n"
    (folder / "__init__.py").write_text(with_import(text.replace("(DDPM(),)", "(DDPM(), Velocity())"), imports))
    (root / "fine_core/sampling/toy.py").write_text(
        f'"""Toy."""\n\nfrom types import SimpleNamespace\n\nimport torch\n\n\n{euler}'
    )
    registry = root / "fine_core/sampling/schedulers.py"
    before = '        ImageSampler(name="dpm-solver++"'
    line = '        ImageSampler(name="toy-euler", schedulers={"toy-velocity": lambda config: Euler()}),\n'
    text = registry.read_text().replace(before, line + before, 1)
    registry.write_text(with_import(text, "from fine_core.sampling.toy import Euler\n"))


def run(code: Path, script: str, *options: str, expect: int = 0) -> str:
    result = subprocess.run(
        [sys.executable, str(code / f"sweeps/{script}.py"), *options],
        env=environment() | {"PYTHONPATH": os.pathsep.join((str(code), str(ROOT)))},
        cwd=code,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert result.returncode == expect, result.stdout + result.stderr
    return result.stdout


def npy_set(folder: Path, seed: int) -> str:
    folder.mkdir()
    random = np.random.default_rng(seed)
    np.save(folder / "images.npy", random.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8))
    np.save(folder / "labels.npy", np.arange(40) % 2)
    return f"npy:{folder}"


def test_toys_of_all_kinds_run_in_a_grid_and_in_a_search(code, tmp_path):
    store = tmp_path / "store"
    options = ["--dataset", npy_set(tmp_path / "source", 0), "--target", npy_set(tmp_path / "target", 1), "--no-flip"]
    options += ["--extractor", str(extractor_file(tmp_path)), "--depths", "2,3", "--widths", "8,16", "--head-dim", "8"]
    options += ["--parameterization", "toy-velocity", "--image-sampler", "toy-euler", "--bank-sampler", "toy-euler"]
    options += ["--steps", "8", "--transfer-steps", "9", "--batch-size", "16", "--num-samples", "24", "--sampling-steps", "3"]
    options += ["--initializations", "toy-start", "--storage-path", str(store), "--checkpoint-every-steps", "4"]

    grid = ["--metrics", "fid,toy_distance", "--transfer", "toy-last,full", "--toy-last-share", "0,1"]
    output = run(code, "size_grid", *options, *grid)
    assert "toy-start L2-D8 is left out: it makes no width but the ancestor's, 16" in output
    assert "toy-last 0.0 L2-D16 from toy-start seed 0: done" in output and "toy-last 1.0 L3-D16" in output
    records = [json.loads(path.read_text()) for path in store.glob("score/*/record.json")]
    assert records and all(
        {"fid", "toy_distance"} <= set(record["metrics"]) for record in records if "kid" not in record["metrics"]
    )
    assert any("toy_distance" in record["metrics"] for record in records)
    bases = [json.loads(path.read_text()) for path in store.glob("base/*/record.json")]
    assert len(bases) == 2 and all(base["spec"]["model"]["parameterization"] == "toy-velocity" for base in bases)
    assert len(list(store.glob("toy-ancestor/*/record.json"))) == 1 and bases[0]["metrics"]["initialize_bytes"] > 0
    (report,) = (store / "reports").iterdir()
    assert "toy_distance" in (report / "pareto-target-8.csv").read_text().splitlines()[0]
    ledger = (report / "ledger.csv").read_text()
    assert "toy-start,initialize,toy-ancestor" in ledger

    search = ["--transfer", "toy-last", "--objectives", "fid,toy_distance", "--trials", "4", "--size", "L2-D16"]
    dry = run(code, "schedule_search", *options, *search, "--dry-run")
    assert "share" in dry and "0.0, 0.5, 1.0" in dry and "scale" in dry
    output = run(code, "schedule_search", *options, *search)
    assert "toy-last L2-D16" in output
    best = json.loads(next((store / "reports").glob("*/best.json")).read_text())["tuned"][0]
    assert set(best["settings"]) == {"lr", "toy-last.share", "toy-start.scale"}
    again = run(
        code,
        "size_grid",
        *options,
        "--metrics",
        "fid,toy_distance",
        "--transfer",
        "full",
        "--tuned",
        str(next((store / "reports").glob("*/best.json"))),
    )
    assert "tuned" in again
    assert Store(store).root == str(store)
