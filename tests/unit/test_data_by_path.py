"""Images and latents by path: what they are called, how they are cropped, what happens to those that cannot be used."""

import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from fine_core.data import by_path as data_by_path
from fine_core.data import file_set
from fine_core.data.by_path import DatasetPath, resolve
from fine_core.data.pixels import to_uint8
from fine_core.data.readers.base import Wanted
from fine_core.data.readers.folder import centre_crop
from fine_core.data.registry import dataset_info, image_size_of, load_dataset, short_name
from fine_core.data.source import LANES, DataError
from fine_core.denoiser import LABEL
from tests.pictures import encoded, image_folder, image_shards, latent_shard, picture
from trainables.specs.base import TrainingSpec
from trainables.training.batches import DenoisingBatches, RehearsingBatches, uniform_probabilities
from trainables.training.prefetch import prefetch


def load(text: str, *, image_size: int = 8, flips: bool = False):
    name = resolve(text, wanted=Wanted(image_size=image_size), flips=flips)
    return name, load_dataset(name, "train")


def test_a_folder_is_its_classes_in_alphabetical_order(tmp_path):
    image_folder(tmp_path / "pets")
    (tmp_path / "pets" / "a-class-without-images").mkdir()
    (tmp_path / "pets" / "class-0" / "notes.txt").write_text("no image")
    name, data = load(f"imagefolder:{tmp_path}/pets")
    info = dataset_info(name)
    assert (info.image_size, info.channels, info.num_classes) == (8, 3, 2) and info.latents is None
    assert data.labels.tolist() == [0] * 6 + [1] * 6 and data.shape == (3, 8, 8)
    expected = np.asarray(centre_crop(picture(102), 8))
    assert torch.equal(to_uint8(data.take(torch.tensor([8])))[0], torch.from_numpy(expected.copy()).permute(2, 0, 1))
    assert image_size_of(name) == 8 and short_name(name) == "pets-8"
    assert DatasetPath.parse(name).path == f"{tmp_path}/pets"
    assert load_dataset(name, "pool") is data, "read and kept once"
    with pytest.raises(ValueError, match="no split 'held_out'"):
        load_dataset(name, "held_out")


def test_a_folder_without_subfolders_is_one_class(tmp_path):
    for i in range(3):
        picture(i).convert("L").save(tmp_path / f"{i}.jpg")
    _, data = load(f"imagefolder:{tmp_path}")
    assert data.labels.tolist() == [0, 0, 0] and data.take(torch.arange(3)).shape == (3, 3, 8, 8)


@pytest.mark.parametrize("size", [(64, 64), (100, 41), (37, 300), (5, 7)])
def test_the_crop_is_central_and_fills_the_square(size):
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))
    cropped = np.asarray(centre_crop(image, 16)).astype(float)
    assert cropped.shape == (16, 16, 3)
    short = min(size)
    for channel, length in ((0, width), (1, height)):
        values = cropped[..., channel]
        shown = short / length * 255  # the stretch of the gradient that the square shows, around its middle
        assert values.mean() == pytest.approx(127.5, abs=0.06 * 255), "central"
        assert values.max() - values.min() == pytest.approx(shown * 15 / 16, abs=0.15 * 255)


def test_the_name_changes_with_the_files_and_a_changed_set_is_refused(tmp_path):
    image_folder(tmp_path / "a")
    name = resolve(f"imagefolder:{tmp_path}/a", wanted=Wanted(image_size=8), flips=True)
    assert ",flips," in name and name != resolve(f"imagefolder:{tmp_path}/a", wanted=Wanted(image_size=8), flips=False)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert resolve(f"imagefolder:{tmp_path}/b", wanted=Wanted(image_size=8), flips=True)[-9:] == name[-9:], (
        "the same files elsewhere"
    )
    picture(5, (30, 30)).save(tmp_path / "a" / "class-1" / "new.png")
    data_by_path._open.cache_clear()
    with pytest.raises(DataError, match="has changed since the sweep was planned; start the sweep again"):
        dataset_info(name)


def test_flips_mirror_half_of_the_images_and_the_step_fixes_which(tmp_path):
    _, data = load(f"imagefolder:{image_folder(tmp_path / 'x', per_class=40)}", flips=True)
    training = TrainingSpec(steps=1, batch_size=80)
    batches = DenoisingBatches(data, training, null_label=2, seed=0, device=torch.device("cpu"))
    batch, again = batches.batch(0), batches.batch(0)
    (rows,) = batch.image_rows
    plain = data.take(rows.rows)
    flipped = rows.augmentation.flipped
    assert 20 < flipped.sum() < 60 and torch.equal(batch.images, again.images)
    assert torch.equal(batch.images[flipped], plain[flipped].flip(-1)) and torch.equal(batch.images[~flipped], plain[~flipped])
    labels = batch.conditions[LABEL]
    assert labels[labels != 2].tolist() == data.labels[rows.rows][labels != 2].tolist()


def test_parquet_holds_the_same_images_whatever_its_layout(tmp_path):
    _, data = load(f"parquet:{image_shards(tmp_path / 'many')}")
    seeds = range(120)
    structs = [{"bytes": encoded(seed), "path": None} for seed in seeds]
    table = pa.table({"image": structs, "label": [seed % 4 for seed in seeds]})
    parquet.write_table(table, tmp_path / "one.parquet")
    _, one = load(f"parquet:{tmp_path}/one.parquet")
    rows = torch.randperm(120)
    assert torch.equal(data.take(rows), one.take(rows)) and data.labels.tolist() == one.labels.tolist()
    expected = torch.from_numpy(np.asarray(centre_crop(picture(77), 8)).copy()).permute(2, 0, 1)
    assert torch.equal(to_uint8(data.take(torch.tensor([77])))[0], expected)
    assert data.group_sizes is None, "a small set is kept in memory and mixed as a whole"


def streamed(monkeypatch, text: str):
    monkeypatch.setattr(file_set, "CACHE_LIMIT_BYTES", 0)
    data_by_path._open.cache_clear()
    name = resolve(text, wanted=Wanted(image_size=8), flips=False)
    return data_by_path.info_by_path.__wrapped__(name).load()


@pytest.mark.parametrize("batch_size", [8, 24, 7])
def test_an_epoch_of_a_stream_touches_each_row_once(tmp_path, monkeypatch, batch_size):
    data = streamed(monkeypatch, f"parquet:{image_shards(tmp_path / 'x', rows_per_shard=35, group=9)}")
    assert data.group_sizes.tolist() == [9, 9, 9, 8] * 3
    batches = DenoisingBatches(
        data, TrainingSpec(steps=1, batch_size=batch_size), null_label=4, seed=0, device=torch.device("cpu")
    )
    order = batches.order
    steps = 3 * 105 // batch_size  # three epochs
    by_lane: dict[int, list[int]] = {lane: [] for lane in range(LANES)}
    for step in range(steps):
        lanes = sorted(sample % LANES for sample in range(step * batch_size, (step + 1) * batch_size))
        assert len(set(lanes)) == min(LANES, batch_size), "a batch is mixed from all lanes"
        for lane, row in zip(lanes, order.rows(step).tolist(), strict=True):
            by_lane[lane].append(row)
    counts = Counter(row for rows in by_lane.values() for row in rows)
    assert set(counts) == set(range(105)) and max(counts.values()) <= 4 and min(counts.values()) >= 2
    first_epoch = []
    for lane, rows in by_lane.items():
        length = order.borders[lane + 1] - order.borders[lane]
        first_epoch += rows[:length]
        assert rows[:length] != rows[length : 2 * length], "another epoch has another order"
    assert sorted(first_epoch) == list(range(105)), "the lanes' first epochs are all rows, each once"


def test_workers_of_a_stream_share_no_row_and_see_what_one_sees(tmp_path, monkeypatch):
    data = streamed(monkeypatch, f"parquet:{image_shards(tmp_path / 'x', rows_per_shard=80, group=5)}")
    batches = DenoisingBatches(data, TrainingSpec(steps=1, batch_size=16), null_label=4, seed=0, device=torch.device("cpu"))
    groups = []
    for rank in range(4):
        rows = [r.rows for step in range(15) for r in batches.batch(step).share(rank, 4).image_rows]  # an epoch
        groups.append({int(row) // 5 for row in torch.cat(rows)})
    shared = sum(len(a & b) for i, a in enumerate(groups) for b in groups[:i])
    assert shared <= 3 and len(set.union(*groups)) == 48, "row groups are shared at the borders of the parts alone"
    whole = batches.batch(3).images
    parts = torch.cat([batches.batch(3).share(rank, 4).images for rank in range(4)])
    assert torch.equal(whole, parts)


def test_the_next_images_are_read_ahead_and_are_the_same(tmp_path, monkeypatch):
    data = streamed(monkeypatch, f"parquet:{image_shards(tmp_path / 'x')}")
    batches = DenoisingBatches(data, TrainingSpec(steps=1, batch_size=8), null_label=4, seed=0, device=torch.device("cpu"))
    for step, batch, images in prefetch(batches, range(2, 9), rank=1, num_workers=2):
        expected = batches.batch(step).share(1, 2)
        assert torch.equal(images, expected.images) and torch.equal(batch.noise, expected.noise)


def test_rehearsed_images_come_after_those_of_the_target(tmp_path):
    _, target = load(f"imagefolder:{image_folder(tmp_path / 'a')}", flips=True)
    _, source = load(f"imagefolder:{image_folder(tmp_path / 'b', classes=3)}", flips=True)
    training = TrainingSpec(steps=1, batch_size=12)
    adapting = DenoisingBatches(target, training, null_label=2, seed=0, device=torch.device("cpu"), batch_size=8)
    batches = RehearsingBatches(
        target=adapting,
        rehearsed=source,
        rehearsed_per_batch=4,
        probabilities=uniform_probabilities(),
        weights=torch.ones(1000),
        retention_weight=1.0,
    )
    batch = batches.batch(0)
    assert torch.equal(batch.images[:8], adapting.batch(0).images) and len(batch.images) == len(batch.conditions[LABEL]) == 12
    shares = [batch.share(rank, 3) for rank in range(3)]
    for name, rows in (("target", slice(0, 8)), ("rehearsed", slice(8, 12))):
        parts = [share.images[[rank in batch.ranks[rows] for rank in share.ranks]] for share in shares]
        assert torch.equal(torch.cat(parts), batch.images[rows]), name
    assert [len(share.images) for share in shares] == [4, 4, 4]


def test_a_corrupt_image_is_replaced_by_one_of_its_class(tmp_path):
    labels = [0, 1] * 60
    images = [encoded(seed) for seed in range(120)]
    images[6] = b"damaged"
    parquet.write_table(pa.table({"image": images, "label": labels}), tmp_path / "x.parquet")
    _, data = load(f"parquet:{tmp_path}/x.parquet")
    taken = data.take(torch.tensor([6, 8]))
    assert torch.equal(taken[0], taken[1]) and data.corrupt == ["x.parquet row 6"]
    parquet.write_table(pa.table({"image": [b"x"], "label": [0]}), tmp_path / "y.parquet")
    _, data = load(f"parquet:{tmp_path}/y.parquet")
    with pytest.raises(DataError, match="no image of class 0 can be read, such as y.parquet row 0"):
        data.take(torch.tensor([0]))


def test_a_small_part_of_a_large_group_is_not_read_again(tmp_path, monkeypatch):
    _, data = load(f"parquet:{image_shards(tmp_path / 'x', shards=1, rows_per_shard=60, group=20)}")
    read = []
    monkeypatch.setattr(
        data.reader.reader, "read", lambda rows: read.append(rows) or torch.zeros(len(rows), 3, 8, 8, dtype=torch.uint8)
    )
    for row in torch.randperm(60):
        data.take(row[None])
    assert sorted(len(rows) for rows in read) == [20, 20, 20]


def test_corrupt_images_are_named_and_replaced_by_the_next_one_up_to_a_limit(tmp_path):
    root = image_folder(tmp_path / "x", per_class=60)
    (root / "class-0" / "11.png").write_bytes(b"not an image")
    _, data = load(f"imagefolder:{root}")
    bad = sorted(file.name for file in (root / "class-0").iterdir()).index("11.png")
    images = data.take(torch.tensor([0, bad, bad + 1]))
    assert torch.equal(images[1], images[2]) and data.corrupt == ["class-0/11.png"]
    content = (root / "class-1" / "3.png").read_bytes()
    (root / "class-1" / "3.png").write_bytes(content[: len(content) // 2])
    data_by_path._open.cache_clear()
    _, data = load(f"imagefolder:{root}")
    message = r"2 of 120 images cannot be read, more than 1%: class-0/11.png, class-1/3.png; remove or replace them"
    with pytest.raises(DataError, match=message):
        data.take(torch.arange(120))


def test_latents_are_drawn_from_their_posterior_at_their_scale(tmp_path):
    moments = np.random.default_rng(0).normal(size=(20, 2, 2, 4, 2, 2))
    moments[:, :, 1] = 0.5
    latent_shard(tmp_path / "a.parquet", moments, np.arange(20) % 3)
    name, data = load(f"parquet:{tmp_path}", flips=True, image_size=999)
    info = dataset_info(name)
    assert (info.image_size, info.channels, info.num_classes, info.latents.scale) == (2, 4, 3, 0.18215)
    rows = torch.arange(20)
    mean = torch.from_numpy(moments[:, 0, 0].astype(np.float16)).float()
    assert torch.allclose(data.take(rows), mean * 0.18215)
    drawn = data.draw_augmentation(20, torch.Generator().manual_seed(0))
    both = torch.from_numpy(moments[:, :, 0].astype(np.float16)).float()
    expected = (both[rows, drawn.flipped.long()] + 0.5 * drawn.noise) * 0.18215
    assert torch.allclose(data.take(rows, drawn), expected) and 0 < drawn.flipped.sum() < 20
    latent_shard(tmp_path / "unflipped.parquet", moments[:, :1], np.arange(20) % 3)
    assert ",flips" not in resolve(f"parquet:{tmp_path}/unflipped.parquet", wanted=Wanted(image_size=1), flips=True)


def one_file(tmp_path, **columns):
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    return f"parquet:{tmp_path}/x.parquet"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: "imagefolder:" + str(p / "nowhere"), "no such folder"),
        (lambda p: f"imagefolder:{p}", "holds no image .*, nor do its subfolders"),
        (lambda p: "parquet:" + str(p / "nowhere"), "no such file or folder"),
        (lambda p: f"parquet:{p}", r"holds no \*.parquet file"),
        (lambda p: one_file(p, picture=[b""], text=["a"]), "columns picture, text; which one holds the images"),
        (lambda p: one_file(p, image=[b"x"], img=[b"x"]), "columns image, img; which one holds the images"),
        (lambda p: one_file(p, image=[b"x"] * 2, label=["cat", None]), "1 of 2 rows have no label; remove them"),
        (lambda p: one_file(p, image=[b"x"] * 2, label=[0, None]), "1 of 2 rows have no label; remove them"),
        (lambda p: one_file(p, image=[b"x"], label=[0.5]), "its column label holds fractions"),
        (lambda p: one_file(p, image=[b"x"] * 2, label=[0.0, float("nan")]), "1 of 2 rows have no label"),
        (lambda p: one_file(p, image=[b"x"], label=[[1]]), "labels are whole numbers or names"),
        (
            lambda p: one_file(p, image=[{"bytes": None, "path": "a.png"}], label=[0]),
            r"names its images \(a.png\) and does not",
        ),
        (lambda p: one_file(p, image=[b"x"], label=[-1]), "label -1 is negative"),
        (lambda p: one_file(p, image=pa.array([], pa.binary()), label=pa.array([], pa.int64())), "has no rows"),
        (lambda p: one_file(p, image=["a"], label=[0]), "images are string; they must be encoded images as bytes"),
        (lambda p: "digits", "'digits' names no images; write imagefolder:PATH or parquet:PATH"),
        (lambda p: one_file(p, latent=[[1.0]], label=[0]), "does not say how its latents were made"),
        (lambda p: broken(p), "is no readable Parquet file"),
        (lambda p: other_length(p), r"its latents are .*\[8\].*, its header says \[1, 2, 4, 2, 2\] in float16"),
        (lambda p: other_scale(p), "has latents of another kind than .*a.parquet"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, make, message):
    with pytest.raises(DataError, match=message) as error:
        resolve(make(tmp_path), wanted=Wanted(image_size=8), flips=True)
    assert "\n" not in str(error.value)


def broken(tmp_path):
    file = image_shards(tmp_path / "x") / "00.parquet"
    file.write_bytes(file.read_bytes()[:-40])
    return f"parquet:{file}"


def other_length(tmp_path):
    latent_shard(tmp_path / "a.parquet", np.zeros((4, 1, 2, 1, 2, 2)), np.arange(4), shape=[1, 2, 4, 2, 2])
    return f"parquet:{tmp_path}"


def other_scale(tmp_path):
    made = {"vae_sha256": "0" * 64, "scale": 1.0, "data": "x", "image_size": 16}
    latent_shard(tmp_path / "a.parquet", np.zeros((4, 1, 2, 4, 2, 2)), np.arange(4))
    latent_shard(tmp_path / "b.parquet", np.zeros((4, 1, 2, 4, 2, 2)), np.arange(4), latents=made)
    return f"parquet:{tmp_path}"


def test_a_damaged_page_is_named(tmp_path, monkeypatch):
    file = image_shards(tmp_path / "x", shards=1) / "00.parquet"
    content = bytearray(file.read_bytes())
    content[4:2000] = bytes(1996)
    file.write_bytes(content)
    data = streamed(monkeypatch, f"parquet:{file}")
    with pytest.raises(DataError, match="00.parquet is damaged"):
        data.take(torch.arange(10))
