"""Folders and tables of images as people have them: what is taken, what is left out, and what is said of it."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from pyarrow import parquet

from fine_core.data import by_path
from fine_core.data.by_path import notes_of, resolve
from fine_core.data.readers.base import Wanted
from fine_core.data.readers.folder import as_rgb, decode
from fine_core.data.registry import dataset_info, load_dataset
from fine_core.data.source import DataError
from sweeps.size_grid import main
from tests.pictures import encoded, extractor_file, image_folder, picture


def png(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def opened(text: str):
    name = resolve(text, wanted=Wanted(image_size=8), flips=False)
    return load_dataset(name, "train"), notes_of(name), dataset_info(name)


def test_hidden_and_system_folders_are_no_classes(tmp_path):
    image_folder(tmp_path, classes=2, per_class=3)
    expected, *_ = opened(f"imagefolder:{tmp_path}")
    for hidden in (".ipynb_checkpoints", "@eaDir", "class-0/.thumbnails", "class-1/@eaDir", "__MACOSX"):
        (tmp_path / hidden).mkdir()
        picture(1).save(tmp_path / hidden / "copy.png")
    picture(1).save(tmp_path / "class-0" / "._x.png")
    found, notes, info = opened(f"imagefolder:{tmp_path}")
    assert len(found) == len(expected) == 6 and info.num_classes == 2
    assert notes == ("classes are its subfolders: 0 = class-0, 1 = class-1",)


def test_what_is_left_out_is_named(tmp_path, tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "store"
    image_folder(tmp_path, classes=2, per_class=3)
    picture(1).save(tmp_path / "loose.png")
    (tmp_path / "README.md").write_text("of no interest")
    (tmp_path / "empty").mkdir()
    (tmp_path / "class-0" / "raw.cr2").write_bytes(b"x")
    found, notes, info = opened(f"imagefolder:{tmp_path}")
    assert len(found) == 6 and info.num_classes == 2
    assert notes == (
        "classes are its subfolders: 0 = class-0, 1 = class-1",
        "no class, as they hold no image: empty",
        "left out, as they lie beside the class folders: loose.png",
        "left out, as Pillow reads no such files: raw.cr2",
    )
    given = ["--dataset", f"imagefolder:{tmp_path}", "--image-size", "8", "--extractor", str(extractor_file(store.parent))]
    said = CliRunner().invoke(main, [*given, "--transfer", "none", "--dry-run", "--storage-path", str(store)]).output
    assert "left out, as they lie beside the class folders: loose.png" in said, said


@pytest.mark.parametrize("names", [("train", "val", "test"), ("train",), ("Training", "validation")])
def test_folders_of_splits_ask_for_one(names, tmp_path):
    for name in names:
        image_folder(tmp_path / name, classes=2, per_class=2)
    with pytest.raises(DataError, match=f"holds the splits .*; name one, such as imagefolder:{tmp_path}/"):
        opened(f"imagefolder:{tmp_path}")
    assert opened(f"imagefolder:{tmp_path / names[0]}")[2].num_classes == 2


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".webp", ".tiff", ".avif"])
def test_what_pillow_reads_is_read(suffix, tmp_path):
    if suffix not in Image.registered_extensions():
        pytest.skip(f"this Pillow has no {suffix}")
    picture(1).save(tmp_path / f"x{suffix}")
    assert opened(f"imagefolder:{tmp_path}")[0].take(torch.tensor([0])).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_become_white(mode):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 8, 4))
    pixels = decode(png(image.convert(mode)), 8)
    assert pixels[:, 0].eq(0).all() and pixels[:, 7].eq(255).all()


def test_sixteen_bits_become_eight():
    pixels = decode(png(Image.fromarray(np.full((8, 8), 0x4000, dtype=np.uint16))), 8)
    assert pixels.eq(0x40).all()


def test_a_rotated_photograph_is_upright():
    image = Image.fromarray(np.repeat(np.linspace(0, 255, 8).astype(np.uint8)[:, None], 8, axis=1)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    content = png(image, exif=exif)
    assert decode(content, 8)[0, 0, 0] > 200 and decode(png(image), 8)[0, 0, 0] < 50


def table(path: Path, labels, *, image: str = "image", label: str = "label") -> Path:
    rows = {image: [encoded(number) for number in range(len(labels))]}
    parquet.write_table(pa.table(rows | ({} if label is None else {label: labels})), path)
    return path


def labels_of(path: Path):
    found, notes, info = opened(f"parquet:{path}")
    return found.labels.tolist(), notes, info.num_classes


@pytest.mark.parametrize(
    ("labels", "numbers", "note"),
    [
        (["b", "a", "b"], [1, 0, 1], "classes in alphabetical order: 0 = a, 1 = b"),
        (pa.array(["b", "a", "b"]).dictionary_encode(), [1, 0, 1], "classes in alphabetical order: 0 = a, 1 = b"),
        ([True, False, True], [1, 0, 1], "classes: 0 = false, 1 = true"),
        ([2.0, 0.0, 1.0], [2, 0, 1], None),
        ([3, 1, 3], [3, 1, 3], "4 classes, of which 2 have no image: 0, 2"),
        ([100_001, 1, 7], [2, 0, 1], "3 classes numbered anew, as their labels go up to 100001: 0 = 1, 1 = 7, 2 = 100001"),
    ],
)
def test_labels_of_every_kind_become_classes(labels, numbers, note, tmp_path):
    found, notes, num_classes = labels_of(table(tmp_path / "x.parquet", labels))
    assert found == numbers and notes == (() if note is None else (note,)) and num_classes == max(numbers) + 1


def test_columns_by_their_usual_names(tmp_path):
    found, notes, _ = labels_of(table(tmp_path / "x.parquet", [1, 0], image="img", label="fine_label"))
    assert found == [1, 0] and notes == ("labels are those of its column fine_label",)
    found, notes, classes = labels_of(table(tmp_path / "y.parquet", [1, 0], label=None))
    assert found == [0, 0] and classes == 1 and notes == ("it has no column of labels, so it is one class",)


def test_names_are_numbered_over_all_files(tmp_path):
    table(tmp_path / "0.parquet", ["c", "a"])
    table(tmp_path / "1.parquet", ["b", "b"])
    assert labels_of(tmp_path)[0] == [2, 0, 1, 1]
    other = tmp_path / "other"
    other.mkdir()
    table(other / "0.parquet", ["c", "a"])
    table(other / "1.parquet", [1, 2])
    with pytest.raises(DataError, match="labels are .* in different files; write them alike"):
        labels_of(other)


def test_shards_of_several_splits_ask_for_one(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "test-00000-of-00001"):
        table(tmp_path / f"{name}.parquet", [0, 1])
    with pytest.raises(DataError, match=r"holds the splits train, test, validation; name one, such as parquet:.*/train-\*"):
        labels_of(tmp_path)
    assert len(labels_of(f"{tmp_path}/train-*.parquet")[0]) == 4 and len(labels_of(f"{tmp_path}/test-*")[0]) == 2
    with pytest.raises(DataError, match=r"holds no dev-\* file"):
        labels_of(f"{tmp_path}/dev-*")


def test_hive_folders_are_labels(tmp_path):
    for name, numbers in {"label=dog": [1], "label=cat": [2, 3], "label=a%20b": [4]}.items():
        (tmp_path / "named" / name).mkdir(parents=True)
        table(tmp_path / "named" / name / "x.parquet", numbers, label=None)
    assert labels_of(tmp_path / "named")[:2] == ([0, 1, 1, 2], ("classes in alphabetical order: 0 = a b, 1 = cat, 2 = dog",))
    for name in ("split=train/label=1", "split=train/label=0"):
        (tmp_path / "numbered" / name).mkdir(parents=True)
        table(tmp_path / "numbered" / name / "x.parquet", [5], label=None)
    (tmp_path / "numbered" / "_SUCCESS").touch()
    (tmp_path / "numbered" / "split=train" / "label=1" / "._x.parquet").write_bytes(b"of macOS")
    assert labels_of(tmp_path / "numbered")[:2] == ([0, 1], ())


def test_a_folder_of_folders_says_which(tmp_path):
    (tmp_path / "data").mkdir()
    table(tmp_path / "data" / "x.parquet", [0])
    with pytest.raises(DataError, match="its subfolders are data: name one"):
        labels_of(tmp_path)


def test_files_with_other_columns_are_refused(tmp_path):
    table(tmp_path / "0.parquet", [0, 1])
    table(tmp_path / "1.parquet", [0, 1], image="img")
    with pytest.raises(DataError, match="1.parquet has img and label, but .*0.parquet has image and label; write them alike"):
        labels_of(tmp_path)


def test_columns_can_be_named(tmp_path):
    rows = {"photo": [encoded(n) for n in range(3)], "image": [encoded(n) for n in range(3)], "sort": ["b", "a", "b"]}
    parquet.write_table(pa.table(rows), tmp_path / "x.parquet")
    wanted = Wanted(image_size=8, image_column="photo", label_column="sort")
    name = resolve(f"parquet:{tmp_path}/x.parquet", wanted=wanted, flips=False)
    assert ",image=photo,label=sort," in name and load_dataset(name, "train").labels.tolist() == [1, 0, 1]
    for bad in (replace(wanted, image_column="nothing"), replace(wanted, label_column="nothing")):
        with pytest.raises(DataError, match="has no column 'nothing'; it has photo, image, sort"):
            resolve(f"parquet:{tmp_path}/x.parquet", wanted=bad, flips=False)


def test_names_of_classes_that_datasets_wrote_are_said(tmp_path):
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    rows = pa.table({"image": [encoded(0), encoded(1)], "label": [1, 0]})
    parquet.write_table(rows.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "x.parquet")
    assert labels_of(tmp_path / "x.parquet")[1] == ("classes: 0 = cat, 1 = dog",)


def test_images_that_are_missing_after_the_first_row_are_seen_while_planning(tmp_path):
    images = [{"bytes": encoded(0), "path": "0.png"}, *({"bytes": None, "path": f"{n}.png"} for n in range(1, 4))]
    parquet.write_table(pa.table({"image": images, "label": [0] * 4}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="3 of 4 images are missing or only named; embed them"):
        labels_of(tmp_path / "x.parquet")


def test_whole_fractions_are_numbers_and_others_are_refused(tmp_path):
    with pytest.raises(DataError, match="its column label holds fractions"):
        labels_of(table(tmp_path / "x.parquet", [0.5, 1.0]))
    with pytest.raises(DataError, match="label -1 is negative, which datasets write for a missing one"):
        labels_of(table(tmp_path / "y.parquet", [-1, 1]))


@pytest.mark.parametrize("names", [("train", "test", "extra"), ("training", "cats")])
def test_splits_beside_another_folder_ask_for_one(names, tmp_path):
    for name in names:
        image_folder(tmp_path / name, classes=2, per_class=2)
    with pytest.raises(DataError, match=f"beside other folders; name one, such as imagefolder:{tmp_path}/{names[0]}"):
        opened(f"imagefolder:{tmp_path}")


def test_one_class_may_be_called_as_a_split(tmp_path):
    for name in ("test", "cats"):
        image_folder(tmp_path / name, classes=1, per_class=2)
    assert opened(f"imagefolder:{tmp_path}")[2].num_classes == 2


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_labels_of_a_metadata_file(kind, tmp_path):
    for number in range(4):
        picture(number).save(tmp_path / f"{number}.png")
    rows = {"2.png": "dog", "0.png": "cat", "1.png": "dog"}
    if kind == "csv":
        lines = ["\ufefffile_name,label,text", *(f"{file},{label},x" for file, label in rows.items())]
    else:
        lines = [json.dumps({"file_name": file, "label": label}) for file, label in rows.items()]
    (tmp_path / f"metadata.{kind}").write_text("\n".join(lines))
    found, notes, info = opened(f"imagefolder:{tmp_path}")
    assert found.labels.tolist() == [0, 1, 1] and info.num_classes == 2
    assert notes == (
        f"labels are those of metadata.{kind}",
        "classes in alphabetical order: 0 = cat, 1 = dog",
        f"left out, as metadata.{kind} does not name them: 3.png",
    )
    (tmp_path / "1.png").unlink()
    by_path._open.cache_clear()
    with pytest.raises(DataError, match=f"metadata.{kind} names 1.png, which are not there"):
        opened(f"imagefolder:{tmp_path}")


def test_a_metadata_file_of_texts_leaves_the_folders_as_classes(tmp_path):
    image_folder(tmp_path, classes=2, per_class=2)
    (tmp_path / "metadata.csv").write_text("file_name,text\nclass-0/0.png,a picture\n")
    assert opened(f"imagefolder:{tmp_path}")[2].num_classes == 2
    wanted = Wanted(image_size=8, label_column="sort")
    with pytest.raises(DataError, match="has no metadata.csv or metadata.jsonl with file_name and 'sort'"):
        resolve(f"imagefolder:{tmp_path}", wanted=wanted, flips=False)
    (tmp_path / "metadata.csv").write_text("file,text\nclass-0/0.png,a picture\n")
    with pytest.raises(DataError, match="has rows without file_name"):
        resolve(f"imagefolder:{tmp_path}", wanted=wanted, flips=False)


def test_a_folder_that_leads_back_to_itself_is_refused(tmp_path):
    image_folder(tmp_path, classes=2, per_class=2)
    (tmp_path / "class-0" / "again").symlink_to(tmp_path / "class-0")
    with pytest.raises(DataError, match="class-0/again leads back to a folder above it; remove the link"):
        opened(f"imagefolder:{tmp_path}")


def test_how_many_images_are_transparent_or_turned_is_said(tmp_path):
    image_folder(tmp_path, classes=1, per_class=3)
    picture(5).convert("RGBA").save(tmp_path / "class-0" / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(6).save(tmp_path / "class-0" / "b.png", exif=exif)
    _, notes, _ = opened(f"imagefolder:{tmp_path}")
    assert notes == (
        "classes are its subfolders: 0 = class-0",
        "1 of 5 images have transparent parts, which become white",
        "1 of 5 images are turned upright by their EXIF data",
    )


@pytest.mark.parametrize("names", [("cifar10-train", "cifar10-test"), ("data_train.0", "data_test.0")])
def test_splits_are_known_anywhere_in_a_name(names, tmp_path):
    for name in names:
        table(tmp_path / f"{name}.parquet", [0, 1])
    with pytest.raises(DataError, match="holds the splits"):
        labels_of(tmp_path)


def test_splits_as_hive_folders_ask_for_one(tmp_path):
    for name in ("split=train/label=0", "split=test/label=1"):
        (tmp_path / name).mkdir(parents=True)
        table(tmp_path / name / "x.parquet", [0], label=None)
    with pytest.raises(DataError, match="holds the splits split=test, split=train; name the folder of one"):
        labels_of(tmp_path)


@pytest.mark.parametrize("names", [("train2017", "val2017"), ("cat/train", "cat/test", "dog/train")])
def test_splits_with_a_year_or_within_a_class_are_no_classes(names, tmp_path):
    for name in names:
        image_folder(tmp_path / name, classes=1, per_class=1)
    with pytest.raises(DataError, match="holds the splits"):
        opened(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize(("labels", "kind"), [(range(256), pa.uint8()), (range(128), pa.int8()), ([0, 255], pa.uint8())])
def test_labels_of_one_byte_do_not_overflow(labels, kind, tmp_path):
    found, notes, classes = labels_of(table(tmp_path / "x.parquet", pa.array(labels, kind)))
    assert found == list(labels) and classes == max(labels) + 1
    assert any("have no image" in note for note in notes) == (len(labels) == 2)


def test_images_of_wide_numbers_become_bytes_and_floats_are_refused(tmp_path):
    wide = Image.fromarray(np.full((8, 8), 0x4000, dtype=np.int32))
    assert wide.mode == "I" and as_rgb(wide).getpixel((0, 0)) == (0x40,) * 3
    for number in range(3):
        Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(tmp_path / f"{number}.tiff")
    with pytest.raises(DataError, match="3 of 3 images hold floats, which have no fixed range"):
        opened(f"imagefolder:{tmp_path}")


METADATA = {
    "another name": ("file_name,species\n0.png,cat\n", "is not used: none of its columns (species) is called label"),
    "twice": ("file_name,label\n0.png,cat\n0.png,dog\n", "names 0.png more than once"),
    "no image": ("file_name,label\nmetadata.csv,cat\n", "which are not there, or no images"),
    "missing": ("file_name,label\n0.png,cat\n1.png,NaN\n", "1 rows have no label, such as 1.png"),
    "spelled": ("file_name, Label\n0.png,cat\n1.png,dog\n", "classes in alphabetical order: 0 = cat, 1 = dog"),
    "of pandas": ("file_name,label\n0.png,10.0\n1.png,2.0\n", "11 classes, of which 9 have no image"),
    "long": (f"file_name,label\n0.png,{10**19}\n1.png,2\n", f"classes in alphabetical order: 0 = {10**19}, 1 = 2"),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_as_people_write_them(name, tmp_path):
    content, message = METADATA[name]
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "metadata.csv").write_text(content)
    try:
        said = " ".join(opened(f"imagefolder:{tmp_path}")[1])
    except DataError as error:
        said = str(error)
    assert message in said, said


def test_tables_that_contradict_themselves_are_refused(tmp_path):
    doubled = pa.Table.from_arrays([pa.array([encoded(0)]), pa.array([0]), pa.array([1])], names=["image", "label", "label"])
    parquet.write_table(doubled, tmp_path / "x.parquet")
    with pytest.raises(DataError, match="has several columns called label; name them apart"):
        labels_of(tmp_path / "x.parquet")
    for number, names in enumerate((["cat", "dog"], ["dog", "cat"])):
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        rows = pa.table({"image": [encoded(0)], "label": [0]}).replace_schema_metadata({"huggingface": json.dumps(features)})
        (tmp_path / "two").mkdir(exist_ok=True)
        parquet.write_table(rows, tmp_path / "two" / f"{number}.parquet")
    with pytest.raises(DataError, match="its files have different names for the class numbers"):
        labels_of(tmp_path / "two")
    (tmp_path / "hive" / "label=__HIVE_DEFAULT_PARTITION__").mkdir(parents=True)
    table(tmp_path / "hive" / "label=__HIVE_DEFAULT_PARTITION__" / "x.parquet", [0], label=None)
    with pytest.raises(DataError, match="a folder of rows without a label"):
        labels_of(tmp_path / "hive")
    nothing = [{"bytes": None, "path": None}] * 3
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    parquet.write_table(pa.table({"image": pa.array(nothing, kind)}), tmp_path / "y.parquet")
    with pytest.raises(DataError, match="does not hold them; embed them"):
        labels_of(tmp_path / "y.parquet")


def test_a_bracket_in_a_name_is_no_pattern_where_the_file_is_there(tmp_path):
    assert labels_of(table(tmp_path / "y[1].parquet", [0, 1]))[0] == [0, 1]


def test_other_labels_in_a_table_make_another_set(tmp_path):
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
    names = []
    for label in ("cat", "dog"):  # as long
        (tmp_path / "metadata.csv").write_text(f"file_name,label\n0.png,{label}\n1.png,dog\n")
        by_path._open.cache_clear()
        names.append(resolve(f"imagefolder:{tmp_path}", wanted=Wanted(image_size=8), flips=False))
    assert names[0] != names[1]
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,cat,more\n")
    by_path._open.cache_clear()
    with pytest.raises(DataError, match="a row has more values than there are columns"):
        resolve(f"imagefolder:{tmp_path}", wanted=Wanted(image_size=8), flips=False)
