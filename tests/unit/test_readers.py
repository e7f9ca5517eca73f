"""One conformance suite for every reader of images on disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fine_core.data import by_path
from fine_core.data.by_path import resolve
from fine_core.data.readers.base import Wanted
from fine_core.data.readers.registry import READERS
from fine_core.data.registry import dataset_info, load_dataset
from tests.pictures import image_folder, image_shards, latent_shard


def _latents(root: Path) -> Path:
    root.mkdir()
    values = np.random.default_rng(0).normal(size=(20, 1, 2, 4, 8, 8))
    latent_shard(root / "0.parquet", values, [i % 2 for i in range(20)])
    return root


SIZE = Wanted(image_size=8)
# format -> makes a set of it, in a folder that is not there yet
SETS: dict[str, list[Callable[[Path], Path]]] = {
    "imagefolder": [image_folder],
    "parquet": [image_shards, _latents],
}
CASES = [(kind, make) for kind, makers in SETS.items() for make in makers]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1].__name__}")
def case(request, tmp_path):
    kind, make = request.param
    path = make(tmp_path / "set")
    return kind, path, READERS[kind](str(path), SIZE)


def test_every_reader_has_a_set_here():
    assert set(SETS) == set(READERS)


def test_what_it_says_of_itself_holds(case):
    _, _, reader = case
    number = len(reader.labels)
    rows = reader.read(torch.arange(number))
    assert rows.dtype == reader.dtype and tuple(rows.shape) == (number, *reader.row_shape)
    assert reader.labels.dtype == torch.int64 and int(reader.labels.min()) == 0
    assert reader.group_sizes is None or int(reader.group_sizes.sum()) == number
    assert not reader.corrupt.names


def test_rows_do_not_depend_on_the_order_in_which_they_are_read(case):
    kind, path, reader = case
    number = len(reader.labels)
    order = torch.randperm(number, generator=torch.Generator().manual_seed(0))
    again = READERS[kind](str(path), SIZE)
    one_by_one = torch.cat([again.read(order[i : i + 1]) for i in range(number)])
    assert torch.equal(reader.read(order), one_by_one)
    assert torch.equal(reader.read(torch.tensor([1, 1])), reader.read(torch.tensor([1])).expand(2, *reader.row_shape))


def test_the_fingerprint_is_that_of_the_files(case):
    kind, path, reader = case
    assert READERS[kind](str(path), SIZE).fingerprint == reader.fingerprint
    first = sorted(file for file in path.rglob("*") if file.is_file())[0]
    last = sorted(file for file in path.rglob("*") if file.is_file())[-1]
    (first.with_name(f"another{first.suffix}")).write_bytes(last.read_bytes())
    assert READERS[kind](str(path), SIZE).fingerprint != reader.fingerprint


def test_a_sweep_can_name_it(case):
    kind, path, reader = case
    by_path._open.cache_clear()
    name = resolve(f"{kind}:{path}", wanted=SIZE, flips=False)
    info, data = dataset_info(name), load_dataset(name, "train")
    assert (len(data), info.num_classes) == (len(reader.labels), int(reader.labels.max()) + 1)
    images = data.take(torch.arange(3))
    assert images.shape == (3, info.channels, info.image_size, info.image_size) and images.dtype == torch.float32


@pytest.mark.parametrize("kind", READERS)
def test_what_is_not_there_is_one_line(kind, tmp_path):
    with pytest.raises(ValueError, match="no such") as error:
        READERS[kind](str(tmp_path / "nowhere"), SIZE)
    assert "\n" not in str(error.value)
