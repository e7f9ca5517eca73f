"""A sweep, a search, encoded latents and a picked model in an object store, by the real commands, also after SIGKILL."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import fs

from tests.commands import PATIENCE_S, ROOT, TINY, TRANSFER, command, environment, wait_for, weights
from tests.pictures import extractor_file, image_folder, vae_folder
from tests.servers import ObjectStore
from trainables.storage.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    with ObjectStore(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture()
def home(tmp_path) -> dict[str, str]:
    """The environment of a person whose home is a folder of the test's: databases lie there."""
    (tmp_path / "home").mkdir()
    return environment() | {"HOME": str(tmp_path / "home")}


def run(arguments: list[str], variables: dict[str, str], expect: int = 0) -> str:
    result = subprocess.run(arguments, env=variables, capture_output=True, text=True, timeout=PATIENCE_S)
    assert result.returncode == expect, result.stdout + result.stderr
    return result.stdout + result.stderr


def at(bucket: ObjectStore, path: str, *options: str, script: str = "size_grid") -> list[str]:
    arguments = command(Path("-"), *options, script=script)
    arguments[arguments.index("--storage-path") + 1] = bucket.uri(path)
    return arguments


def downloaded(store: Store, folder: Path) -> Path:
    fs.copy_files(store.root, str(folder), store.filesystem, fs.LocalFileSystem())
    return folder


def test_a_sweep_dies_goes_on_and_is_picked_from(alone, bucket, home, tmp_path):
    store = Store(bucket.uri("sweep"))
    arguments = at(bucket, "sweep", "--runner", "tune", "--max-concurrent", "1", "--checkpoint-every-steps", "1")
    with subprocess.Popen(arguments, env=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:

        def begun() -> bool:
            files = store.filesystem.get_file_info(fs.FileSelector(f"{store.root}/tune", recursive=True, allow_not_found=True))
            return any(".base/" in file.path and file.base_name == "progress.json" for file in files)

        wait_for(begun, "a checkpoint", process=process)
        process.send_signal(signal.SIGKILL)
    said = run(arguments, home)
    assert f"databases are in {home['HOME']}/fine-sweeps-data, as the storage path is in an object store" in said
    assert weights(downloaded(store, tmp_path / "copy")) == weights(alone)
    assert "0 of 0" not in said and "done in" in said
    assert "done in" not in run(arguments, home), "all is in the store"
    out = tmp_path / "picked"
    run([sys.executable, str(ROOT / "sweeps/pick.py"), "--storage-path", bucket.uri("sweep"), "--out", str(out)], home)
    assert (out / "model.safetensors").is_file() and (out / "diffusers").is_dir()


def test_a_search_keeps_its_study_at_home(bucket, home):
    options = [*TRANSFER, "--trials", "2", "--no-early-stopping", "--runner", "tune"]
    said = run(at(bucket, "search", *options, script="schedule_search"), home)
    assert "Best settings by size" in said and (Path(home["HOME"]) / "fine-sweeps-data/optuna.db").is_file()


def test_latents_are_encoded_into_it_and_trained_on(bucket, home, tmp_path):
    image_folder(tmp_path / "images", classes=2, per_class=8)
    vae_folder(tmp_path)
    extractor_file(tmp_path)
    encode = [sys.executable, str(ROOT / "sweeps/encode_latents.py"), "--vae", str(tmp_path / "vae"), "--image-size", "16"]
    encode += ["--data", f"imagefolder:{tmp_path / 'images'}", "--out", bucket.uri("latents"), "--shard-images", "4"]
    assert "16 images in 4 shards, 4 to encode" in run(encode, home)
    assert "16 images in 4 shards, 0 to encode" in run(encode, home)
    plan = [sys.executable, str(ROOT / "sweeps/size_grid.py"), *TINY, "--transfer", "none", "--dry-run"]
    plan += ["--dataset", f"parquet:{bucket.uri('latents')}", "--vae", str(tmp_path / "vae"), "--storage-path", str(tmp_path)]
    plan += ["--methods", "scratch", "--num-samples", "8", "--extractor", str(tmp_path / "means.pt")]
    assert "scratch L2-D16" in run(plan, home)
