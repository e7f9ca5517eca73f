"""One byte is flipped in a file of a finished store, and the same command is run: the same scores, and a word."""

import json
import multiprocessing
import os
import random
import shutil
import sys
from pathlib import Path

import pytest

from tests.commands import TINY, TRANSFER, compute_without_ray, environment

pytestmark = pytest.mark.slow

GRID = [*TRANSFER, "--methods", "fine", "--transfer", "diff-tuning+difffit", "--schedules", "linear"]
KINDS = ("bank", "base", "extractor", "learngene", "score", "transfer")
# So many processes would import everything for seconds each: they are forked from one that has.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["sweeps.size_grid", "sweeps.execution.sweep", "mlflow"])


def command_in_fork(arguments: list[str], output: str, variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from sweeps.size_grid import main

    sys.argv = ["size_grid.py", *arguments]
    main(arguments)


def run(store: Path) -> str:
    """What the command prints. It must end well, and without a traceback."""
    output = store.parent / "output"
    arguments = [*TINY, *GRID, "--storage-path", str(store), "--runner", "tune"]
    process = CONTEXT.Process(target=command_in_fork, args=(arguments, str(output), environment()))
    process.start()
    process.join()
    said = output.read_text()
    assert process.exitcode == 0 and "Traceback" not in said, said
    return said


def scores(store: Path) -> dict[str, float]:
    return {file.parent.name: json.loads(file.read_text())["metrics"]["fid"] for file in store.glob("score/*/record.json")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("finished") / "store"
    compute_without_ray(store, *GRID)
    run(store)
    return store


def flip(file: Path, seed: int) -> None:
    content, generator = bytearray(file.read_bytes()), random.Random(seed)
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    file.write_bytes(content)


def first_of_each(store: Path) -> list[Path]:
    """A file of every kind of job and name."""
    files = sorted(file.relative_to(store) for kind in KINDS for file in store.glob(f"{kind}/*/*"))
    return list({(file.parts[0], file.name): file for file in files}.values())


def test_every_kind_of_file(finished, tmp_path):
    for number, file in enumerate(first_of_each(finished)):
        store = tmp_path / str(number) / "store"
        shutil.copytree(finished, store)
        flip(store / file, number)
        said = run(store)
        assert scores(store) == scores(finished), f"{file}\n{said}"
        if file.name == "record.json":
            assert f"{file} is damaged; {file.parent} is made again" in said.replace("\n", " ")
        elif file.name == "samples.png":
            assert f"{file} is damaged" in said
        else:
            assert "is made again" not in said, "nothing is made from it any more"
    assert number >= 11


@pytest.mark.parametrize("name", ["bank.parquet", "model.safetensors", "reference.safetensors"])
def test_what_is_needed_is_made_again(finished, tmp_path, name):
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    for record in (*store.glob("transfer/*/record.json"), *store.glob("score/*/record.json")):
        record.unlink()
    for number, file in enumerate(store.glob(f"*/*/{name}")):
        flip(file, number)
    said = run(store)
    assert "is damaged in the store; it is made again" in said
    assert scores(store) == scores(finished)
