"""The manifest beside an index, and the export of vectors with it."""

import csv
import json
import struct

import google_crc32c
import numpy as np
import pyarrow.dataset
import pytest
from pyarrow import parquet

from dataset import manifest
from dataset.arrays import Arrays, array_path
from dataset.export import main
from dataset.quality import Quality
from dataset.state import Outcome
from gcs import ListedObject
from tests.dataset.states import INDEX_ID, vectors
from tests.harness import invoked

QUALITY = Quality(brightness=100.5, contrast=50.25, sharpness=1234.5, colourfulness=0.0)
OPTIONS = {
    "dataset": "birds",
    "train_path": "gs://b/t/",
    "val_path": "gs://b/v/",
    "index_id": INDEX_ID,
    "resnet_weights": "1" * 64,
    "clip_weights": "2" * 64,
    "backend": "fused",
    "precision": "float32",
}


@pytest.fixture
def state(make_state, tmp_path):
    """Two training images, one of which failed, and a validation image of unknown quality."""
    train = [ListedObject("t/b.jpg", 7, 2**32 - 1, 2**60), ListedObject("t/a.png", 5, 1, 3)]
    made = make_state(train, [ListedObject("v/é.jpeg", 6, 2, 4)])
    made.set_options(OPTIONS)
    with Arrays(tmp_path, 3) as arrays:
        checksums = [arrays.write(row, vectors(row)) for row in (0, 2)]
    made.record([Outcome(0, 17, None, checksums[0], 640, 480, None, QUALITY)])
    made.record([Outcome(1, None, "truncated")])
    made.record([Outcome(2, 3, None, checksums[1], 20, 30)])
    return made


def test_a_row_per_image_in_row_order(state, tmp_path):
    manifest.write_manifest(state)
    table = parquet.read_table(manifest.manifest_path(tmp_path))
    assert {str(table.schema.field(name).type) for name in Quality._fields} == {"float"}
    rows = table.drop_columns(["vectors_crc32c", "row_crc32c", *Quality._fields]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("t/a.png", "a", "train", 5, 3, 1, 640, 480, 17, None),
        ("t/b.jpg", "b", "train", 7, 2**60, 2**32 - 1, None, None, None, "truncated"),
        ("v/é.jpeg", "é", "val", 6, 4, 2, 20, 30, 3, None),
    ]
    quality = table.select(Quality._fields).to_pylist()
    assert quality == [QUALITY._asdict(), *2 * [dict.fromkeys(Quality._fields)]]


def test_the_metadata_tells_how_the_vectors_were_computed(state, tmp_path):
    manifest.write_manifest(state)
    found = manifest.read_metadata(manifest.manifest_path(tmp_path))
    assert found["dataset"] == "birds" and found["index_id"] == INDEX_ID
    assert found["train_path"] == "gs://b/t/" and found["precision"] == "float32"
    assert found["resnet_weights_sha256"] == "1" * 64 and found["torch"]
    assert found["made"].endswith("+00:00") and len(found["program"]) == 12


def test_rows_are_written_in_groups(state, tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "ROWS_PER_GROUP", 2)
    manifest.write_manifest(state)
    assert parquet.ParquetFile(manifest.manifest_path(tmp_path)).num_row_groups == 2


def test_export_of_some_vectors(state, tmp_path):
    manifest.write_manifest(state)
    path = tmp_path / "birds.parquet"
    done = invoked(main, [str(tmp_path), "--to", str(path), "--embedding", "clip"]).succeeded()
    assert done.stderr == f"Wrote 3 rows to {path}.\n"
    exported = pyarrow.dataset.dataset(path)
    assert str(exported.schema.field("clip").type) == "fixed_size_list<element: float>[512]"
    assert "imagenet" not in exported.schema.names
    first, _, last = exported.to_table().to_pylist()
    for row, seed in ((first, 0), (last, 2)):
        np.testing.assert_array_equal(row["clip"], vectors(seed)[2])
    assert json.loads(exported.schema.metadata[b"forager"])["dataset"] == "birds"
    assert QUALITY._asdict().items() <= first.items()


def test_export_as_csv_has_no_vectors(state, tmp_path):
    manifest.write_manifest(state)
    path = tmp_path / "birds.csv"
    invoked(main, [str(tmp_path), "--to", str(path)]).succeeded()
    names = parquet.read_schema(manifest.manifest_path(tmp_path)).names
    assert next(csv.reader(path.read_text().splitlines())) == names
    for to, option, said in (
        (path, ["--embedding", "clip"], "would be CSV, which has no vectors"),
        (tmp_path / "x.txt", [], "x.txt must end in .parquet or .csv."),
    ):
        result = invoked(main, [str(tmp_path), "--to", str(to), *option])
        assert result.exit_code == 2 and said in result.stderr


def test_export_of_an_unfinished_ingest_is_refused(state, tmp_path):
    arguments = [str(tmp_path), "--to", str(tmp_path / "x.parquet")]
    invoked(main, arguments).failed("has no readable index/manifest.parquet")
    manifest.write_manifest(state)
    array_path(tmp_path, "clip").unlink()
    invoked(main, arguments).failed("do not have the 3 rows of the manifest")


def test_export_of_a_damaged_manifest_leaves_no_file(state, tmp_path):
    manifest.write_manifest(state)
    source = manifest.manifest_path(tmp_path)
    content = bytearray(source.read_bytes())
    content[4:40] = bytes(36)  # of the first page
    source.write_bytes(content)
    arguments = [str(tmp_path), "--to", str(tmp_path / "x.parquet")]
    invoked(main, arguments).failed(f"{source} is damaged")
    assert not list(tmp_path.glob("x.parquet*"))


def rewritten(path, change):
    """Write a manifest anew after a change of its table."""
    parquet.write_table(change(parquet.read_table(path)), path)


def with_column(name, values, kind=None):
    def change(table):
        place = table.schema.get_field_index(name)
        column = pyarrow.array(values, kind or table.schema.field(name).type)
        return table.set_column(place, pyarrow.field(name, column.type), column)

    return change


# What a hostile or broken manifest may hold: of three images, the second of which failed.
HOSTILE = {
    "a class of text": with_column("imagenet_class", ["7", None, "3"], pyarrow.string()),
    "a class of floats": with_column("imagenet_class", [7.0, None, 3.0], pyarrow.float64()),
    "a class of booleans": with_column("imagenet_class", [True, None, True], pyarrow.bool_()),
    "a class of lists": with_column(
        "imagenet_class", [[7], None, [3]], pyarrow.list_(pyarrow.int32())
    ),
    "a class that is missing": with_column("imagenet_class", [17, None, None]),
    "a class out of range": with_column("imagenet_class", [17, None, 1000]),
    "a negative class": with_column("imagenet_class", [-1, None, 3]),
    "a class of a failed image": with_column("imagenet_class", [17, 5, 3]),
    "a negative width": with_column("width", [-640, None, 20]),
    "a height of 0": with_column("height", [480, None, 0]),
    "a width that is missing": with_column("width", [None, None, 20]),
    "a wide width": with_column("width", [2**40, None, 20], pyarrow.int64()),
    "a negative size": with_column("size", [-5, 7, 6]),
    "a size that is missing": with_column("size", [5, None, 6]),
    "a checksum that is missing": with_column("crc32c", [1, None, 2]),
    "a checksum of bytes": with_column("crc32c", [b"1", b"2", b"3"], pyarrow.binary()),
    "an object of bytes": with_column("object", [b"a", b"b", b"c"], pyarrow.binary()),
    "an object that is missing": with_column("object", [None, "t/b.jpg", "v/é.jpeg"]),
    "objects that are repeated": with_column("object", ["t/b.jpg", "t/b.jpg", "v/é.jpeg"]),
    "objects in another order": with_column("object", ["t/b.jpg", "t/a.png", "v/é.jpeg"]),
    "an identifier of another object": with_column("identifier", ["x", "b", "é"]),
    "splits in another order": with_column("split", ["val", "train", "val"]),
    "another split": with_column("split", ["train", "train", "test"]),
    "a date": with_column("generation", [1, 2, 3], pyarrow.timestamp("s")),
    "a brightness of 256": with_column("brightness", [256, None, None]),
    "a negative contrast": with_column("contrast", [-1, None, None]),
    "an infinite sharpness": with_column("sharpness", [float("inf"), None, None]),
    "a colourfulness that is no number": with_column("colourfulness", [float("nan"), None, None]),
    "a contrast that is missing": with_column("contrast", [None, None, None]),
    "a brightness alone": with_column("brightness", [1, None, 1]),
    "a brightness of more digits": with_column("brightness", [1, None, None], pyarrow.float64()),
    "a column that is missing": lambda table: table.drop_columns(["vectors_crc32c"]),
    "a quality that is missing": lambda table: table.drop_columns(["sharpness"]),
    "no checksums of rows": lambda table: table.drop_columns(["row_crc32c"]),
    "a column too many": lambda table: table.append_column("extra", pyarrow.array([1, 2, 3])),
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_nothing_is_believed_of_a_hostile_manifest(state, tmp_path, hostile):
    manifest.write_manifest(state)
    path = manifest.manifest_path(tmp_path)
    assert [(image.row, image.failed) for image in manifest.read_images(path)] == [
        *((0, False), (1, True), (2, False))
    ]
    rewritten(path, lambda table: with_checksums(HOSTILE[hostile](table)))
    with pytest.raises(ValueError, match="has other columns|has values in row"):
        list(manifest.read_images(path))


def with_checksums(table):
    """The table with the checksums of its rows, as a liar would make them."""
    place = table.schema.get_field_index("row_crc32c")
    if place < 0 or any(pyarrow.types.is_list(kind) for kind in table.schema.types):
        return table
    columns = [column.combine_chunks() for column in table.drop_columns("row_crc32c").columns]
    columns = [column for column in columns if column.type not in NOT_FIXED]
    checksums = pyarrow.array(manifest.row_checksums(columns), pyarrow.uint32())
    return table.set_column(place, "row_crc32c", checksums)


NOT_FIXED = pyarrow.binary(), pyarrow.bool_()
CHANGED = {
    "class": with_column("imagenet_class", [18, None, 3]),
    "width": with_column("width", [641, None, 20]),
    "size": with_column("size", [6, 7, 6]),
    "generation": with_column("generation", [4, 2**60, 4]),
    "brightness": with_column("brightness", [99, None, None]),
    "unknown quality": lambda table: without_quality(table),
    "vectors": with_column("vectors_crc32c", [1, None, 2]),
    "checksum of a row": with_column("row_crc32c", [None, 1, 2]),
}


def without_quality(table):
    for name in Quality._fields:
        table = with_column(name, [None] * 3)(table)
    return table


@pytest.mark.parametrize("change", CHANGED)
def test_a_value_that_changed_does_not_match_the_checksum_of_its_row(state, tmp_path, change):
    manifest.write_manifest(state)
    path = manifest.manifest_path(tmp_path)
    rewritten(path, CHANGED[change])
    with pytest.raises(ValueError, match="has a row, 0, that its checksum does not match"):
        list(manifest.read_images(path))


def test_the_number_of_a_row_counts_from_the_first_batch(state, tmp_path, monkeypatch):
    manifest.write_manifest(state)
    path = manifest.manifest_path(tmp_path)
    monkeypatch.setattr(manifest, "BATCH_ROWS", 1)
    assert [image.row for image in manifest.read_images(path)] == [0, 1, 2]
    rewritten(path, with_column("height", [480, None, 31]))
    with pytest.raises(ValueError, match="has a row, 2, that"):
        list(manifest.read_images(path))
    rewritten(path, with_column("object", ["t/a.png", "t/b.jpg", "t/a.png"]))
    with pytest.raises(ValueError, match="has values in row 2 that"):
        list(manifest.read_images(path))


def test_the_checksum_of_a_row_is_that_of_its_values(state, tmp_path):
    """As the documentation has it: bytes of numbers and texts, a zero byte between two values."""
    manifest.write_manifest(state)
    first = parquet.read_table(manifest.manifest_path(tmp_path)).to_pylist()[0]
    numbers = [first[name] for name in ("width", "height", "imagenet_class")]
    packed = [
        *(b"t/a.png", b"a", b"train", struct.pack("<q", 5), struct.pack("<q", 3)),
        struct.pack("<I", 1),
        *(struct.pack("<i", number) for number in numbers),
        *(b"", struct.pack("<I", first["vectors_crc32c"])),
        *(struct.pack("<f", number) for number in QUALITY),
    ]
    assert first["row_crc32c"] == google_crc32c.value(b"\0".join(packed))


def test_quality_is_read_and_that_of_an_earlier_version_is_unknown(state, tmp_path):
    manifest.write_manifest(state)
    path = manifest.manifest_path(tmp_path)
    found = list(manifest.read_images(path))
    assert found == list(state.found())
    assert [image.quality for image in found] == [QUALITY, None, None]
    rewritten(path, lambda table: table.drop_columns([*Quality._fields, "row_crc32c"]))
    assert list(manifest.read_images(path)) == [image._replace(quality=None) for image in found]


METADATA = None, b"[1]", b"nul", b"[" * 100_000, b'"' + b"x" * 9, b"\xff"


@pytest.mark.parametrize("metadata", METADATA)
def test_metadata_that_is_no_object_is_no_manifest(state, tmp_path, metadata):
    manifest.write_manifest(state)
    path = manifest.manifest_path(tmp_path)
    found = {b"forager": metadata} if metadata else None
    rewritten(path, lambda table: table.replace_schema_metadata(found))
    with pytest.raises(ValueError, match="is no manifest of an index"):
        manifest.read_metadata(path)


def test_a_manifest_that_is_cut_anywhere_is_damaged(state, tmp_path):
    manifest.write_manifest(state)
    path = manifest.manifest_path(tmp_path)
    whole = path.read_bytes()
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="is no manifest|is damaged"):
            manifest.read_metadata(path)
        with pytest.raises(ValueError, match="is no manifest|is damaged"):
            list(manifest.read_images(path))
