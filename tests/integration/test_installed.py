"""The package, installed away from the checkout: every command runs as a module, from any folder."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import PATIENCE_S, ROOT, environment

pytestmark = pytest.mark.slow

PACKAGES = ("fine_core", "trainables", "sweeps", "mlflow_setup")
COMMANDS = ("size_grid", "schedule_search", "forgetting_curve", "pick", "encode_latents")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert result.returncode == 0, result.stderr
    return target


def run(installed: Path, folder: Path, *arguments: str) -> str:
    variables = environment() | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", *arguments]
    result = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=PATIENCE_S)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_command_runs_as_a_module(installed, tmp_path):
    for name in COMMANDS:
        assert f"python -m sweeps.{name}" in run(installed, tmp_path, f"sweeps.{name}", "--help")
    assert "import" in run(installed, tmp_path, "fine_core.checkpoints", "--help")
    said = run(installed, tmp_path, "sweeps.size_grid", "--dry-run", "--storage-path", str(tmp_path / "store"))
    assert "36 points" in said and "runs the code of" not in said


def test_it_is_the_installed_code_that_runs(installed, tmp_path):
    script = tmp_path / "where.py"
    script.write_text(
        "import fine_core.dit, trainables.worker, sweeps.size_grid, mlflow_setup.runs as last; print(last.__file__)"
    )
    variables = environment() | {"PYTHONPATH": str(installed)}
    result = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert result.stdout.strip().startswith(str(installed)), result.stderr
