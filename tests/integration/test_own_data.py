"""From images, a checkpoint, an extractor and a VAE on disk to a model to take away, by the real commands."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from fine_core.checkpoints.diffusers_folder import load_pipeline
from tests.commands import PATIENCE_S, ROOT, environment, matches, sweep, wait_for
from tests.pictures import extractor_file, image_folder, vae_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    image_folder(root / "images", classes=3, per_class=20)
    image_folder(root / "target", classes=2, per_class=8)
    (root / "images" / "class-1" / "7.png").write_bytes(b"damaged")
    extractor_file(root)
    vae_folder(root)
    return root


def encode_command(place: Path, data: str, out: str, *options: str) -> list[str]:
    command = [sys.executable, str(ROOT / "sweeps/encode_latents.py"), "--vae", str(place / "vae")]
    return [*command, "--data", f"imagefolder:{place / data}", "--out", str(place / out), "--image-size", "16", *options]


def run(command: list[str], expect: int = 0) -> str:
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S)
    assert result.returncode == expect, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_from_images_to_latents_to_a_pipeline(place):
    started = subprocess.Popen(
        encode_command(place, "images", "killed", "--shard-images", "4", "--batch-size", "1", "--workers", "1"),
        env=environment(),
        stdout=subprocess.PIPE,
    )
    wait_for(lambda: matches(place / "killed", "part-*.parquet"), "a shard", process=started)
    processes = [psutil.Process(started.pid), *psutil.Process(started.pid).children(recursive=True)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=PATIENCE_S)
    done = {file.name: file.read_bytes() for file in (place / "killed").glob("part-*.parquet")}
    output = run(encode_command(place, "images", "killed", "--shard-images", "4"))
    assert f"60 images in 15 shards, {15 - len(done)} to encode" in output
    assert all((place / "killed" / name).read_bytes() == content for name, content in done.items())
    assert len(list((place / "killed").glob("part-*.parquet"))) == 15
    assert "name another --out" in run(encode_command(place, "target", "killed", "--shard-images", "4"), expect=2)
    run(encode_command(place, "target", "target-latents"))
    given = ["--extractor", str(place / "means.pt"), "--vae", str(place / "vae"), "--dataset", f"parquet:{place / 'killed'}"]
    transfer = ["--target", f"parquet:{place / 'target-latents'}", "--transfer", "diff-tuning", "--schedules", "linear"]
    transfer += ["--transfer-steps", "6", "--bank-images", "30", "--bank-sampling-steps", "2", "--methods", "scratch"]
    store = place / "latent-store"
    output = sweep(store, *given, *transfer)
    assert "Points on killed-8" in output and "Points on target-latents-8" in output and "VAE@" in output
    picked = [sys.executable, str(ROOT / "sweeps/pick.py"), "--storage-path", str(store), "--out", str(place / "picked")]
    run([*picked, "--dataset", "target-latents-8", "--num-samples", "10"])
    pipeline = load_pipeline(place / "picked" / "diffusers")
    assert pipeline([0, 1], num_inference_steps=2, output_type="np").images.shape == (2, 16, 16, 3)
    assert np.load(place / "picked" / "samples.npz")["arr_0"].shape == (10, 16, 16, 3)


def test_a_folder_of_images_is_a_dataset_and_another_protocol_trains_nothing(place):
    store = place / "pixel-store"
    given = ["--extractor", str(place / "means.pt"), "--dataset", f"imagefolder:{place / 'images'}", "--image-size", "8"]
    given += ["--methods", "scratch"]
    output = sweep(store, *given)
    assert "1 image of images-8 cannot be read; the next of the class takes its place: class-1/7.png" in output
    (first,) = store.glob("base/*/model.safetensors")
    before = first.read_bytes()
    output = sweep(store, *given, "--num-samples", "40")
    assert "scratch L2-D16 seed 0: done" in output
    models = [file.read_bytes() for file in store.glob("base/*/model.safetensors")]
    assert models == [before], "no weights are stored twice"


def test_latents_that_are_encoded_twice_at_once_are_encoded_once(place):
    command = encode_command(place, "images", "twice", "--shard-images", "20", "--workers", "1")
    started = [subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=PATIENCE_S)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert sum("waiting for encode_latents.py on" in text for text in said) == 1
    assert sorted(text.count("60 images encoded") for text in said) == [0, 1]
    assert sorted(text.count("60 images in 3 shards, 0 to encode") for text in said) == [0, 1]
    assert not list((place / "twice" / ".leases").glob("*"))
