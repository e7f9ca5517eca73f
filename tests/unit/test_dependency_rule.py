"""The layers of the project: who may import what. Checked on the source, and by really importing fine_core alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("fine_core", "trainables", "sweeps", "mlflow_setup")
ALLOWED = {  # what each package may import of the things that are ruled
    "fine_core": set(),
    "trainables": {"fine_core", "ray.train", "ray.util.placement_group", "ray.PlacementGroupID"},
    "sweeps": {"fine_core", "trainables", "mlflow_setup", "ray", "ray.tune", "optuna", "click"},
    "mlflow_setup": {"mlflow", "fine_core.text"},
}
RULED = {*PACKAGES, "ray", "optuna", "mlflow", "click"}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "ray":
            names |= {f"ray.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_their_layer_may(package):
    for path in (ROOT / package).rglob("*.py"):
        for name in imports(path):
            if name.split(".")[0] not in RULED or name.split(".")[0] == package:
                continue
            parts = name.split(".")
            allowed = {".".join(parts[: i + 1]) for i in range(len(parts))} & ALLOWED[package]
            assert allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_only_the_worker_knows_ray_train_and_mlflow_setup_knows_no_torch():
    for path in (ROOT / "trainables").rglob("*.py"):
        assert path.name == "worker.py" or not any(n.split(".")[0] == "ray" for n in imports(path)), path
    for path in (ROOT / "mlflow_setup").rglob("*.py"):
        assert not any(n.split(".")[0] in ("torch", "numpy") for n in imports(path)), path


def test_fine_core_and_the_training_loop_run_without_ray_optuna_mlflow_and_diffusers():
    code = """
import sys
for name in ("ray", "optuna", "mlflow", "click", "diffusers", "peft"):
    sys.modules[name] = None  # importing it raises ImportError
import pathlib, importlib, tempfile
for path in pathlib.Path("fine_core").rglob("*.py"):
    if path.parent.name != "pipeline" and path.stem != "__main__":
        importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
from fine_core.data.registry import load_dataset
from tests.tiny import tiny_base
from trainables.training.context import LocalContext
from trainables.initializations.scratch import ScratchRecipe
from trainables.training.batches import DenoisingBatches
from trainables.training.loop import train
trial = tiny_base("scratch")
with tempfile.TemporaryDirectory() as folder:
    batches = DenoisingBatches(load_dataset("digits", "train"), trial.training, null_label=10, seed=0, device="cpu")
    _, progress = train(ScratchRecipe(trial), batches=batches, training=trial.training,
        run=LocalContext(folder + "/run"), checkpoint_every_steps=4)
print("steps", progress.step)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "steps 8", result.stderr


def test_models_are_never_unpickled():
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), path
                assert not (isinstance(node, ast.Call) and ast.unparse(node.func).startswith("pickle.")), path


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def test_no_module_imports_itself_through_others():
    """Imports at the top of modules, packages' `__init__` included, form no circle."""
    known = modules()
    edges: dict[str, set[str]] = {}
    for name, path in known.items():
        tops = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom) and node.module]
        named = {f"{node.module}.{alias.name}" for node in tops for alias in node.names} | {node.module for node in tops}
        edges[name] = (named & known.keys()) - {name}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())


def test_every_package_is_installed():
    """Packages are found, not listed; each folder of modules is one."""
    for path in modules().values():
        assert (path.parent / "__init__.py").exists(), path
