"""Columns of one's own and quality: files, filters, orders, counts, exports, sets."""

import csv
import datetime
import decimal
import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from pyarrow import parquet

from dataset import quality
from local_forager import types as page_types
from local_forager.analysis.health import LIMITS, beyond
from local_forager.commands.column_files import read_columns_file, rows_of_keys
from local_forager.commands.columns import TAKEN
from local_forager.indexes.fields import own_field
from local_forager.indexes.own_columns import text_column
from local_forager.types import PageError
from testing import photographs
from tests.local_forager.page_server import fetch, get, made_fields, made_index

UTC = datetime.timezone.utc
ROWS = 6
MEASURED = {  # of the images 0.jpg to 5.jpg
    "brightness": [30, 41, 120, 230, 255, None],
    "contrast": [10, 40, 40, 10.04, 10.05, None],
    "sharpness": [500, 10, 0, 30_000, 25, None],
    "colourfulness": [0, 15.25, 33, 12, 80, None],
}
CAMERAS = """image;taken;weight;camera;=note
0.jpg;2024-03-01;1.5;Nikon;=1+1
1.jpg;2024-03-31;;Canon;b
2.jpg;2024-05-01;2.25;Nikon;
3.jpg;;-3;"Sony; α7";c
"""


def read(tmp_path, content, key=None):
    path = tmp_path / "columns"
    if isinstance(content, dict):
        parquet.write_table(pa.table(content), path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_columns_file(path, key, TAKEN)


@pytest.mark.parametrize(
    ("texts", "kind", "step", "values"),
    [
        (["1", "20", "", "NA"], "whole", 1, [1, 20, None, None]),
        (["4503599627370497", "-1"], "whole", 1, [4503599627370497, -1]),
        (["0.5", "1e3", "NaN"], "number", 1, [0.5, 1000, None]),
        ([f"{row / 8}" for row in range(9)], "number", 0.001, [row / 8 for row in range(9)]),
        (["2024-03-01", "2024-03-02"], "date", 86400, None),
        (["2024-03-01T10:00:30Z", "2024-03-01T12:30:00+01:00"], "date", 60, None),
        (["2024-03-01 10:00:30", "2024-03-01 10:02:00"], "date", 1, None),
        (["2020-01-01 12:00", "2024-03-01"], "date", 86400, None),
        (["007", "12"], "text", None, ["007", "12"]),
        (["12", "x", "", "NA"], "text", None, ["12", "x", None, "NA"]),
    ],
)
def test_a_column_has_the_type_of_all_its_texts(tmp_path, texts, kind, step, values):
    content = "image,c\n" + "".join(f'{row},"{text}"\n' for row, text in enumerate(texts))
    column = read(tmp_path, content).table["c"].combine_chunks()
    if kind == "text":
        assert pa.types.is_string(column.type)
    else:
        field = own_field("c", column)
        assert (field.kind.value, field.step) == (kind, step)
    if values:
        assert column.to_pylist() == values


def test_columns_of_parquet(tmp_path):
    noon = datetime.datetime(2024, 3, 1, 12, tzinfo=UTC)
    table = read(
        tmp_path,
        {
            "id": pa.array([1, 2]),
            "whole": pa.array([5.0, None]),
            "half": pa.array([0.5, float("inf")], pa.float32()),
            "money": pa.array([decimal.Decimal("1.25"), None]),
            "yes": pa.array([True, None]),
            "kind": pa.array(["a", ""]).dictionary_encode(),
            "day": pa.array([noon.date(), None]),
            "time": pa.array([noon, None], pa.timestamp("ns", "Asia/Tokyo")),
        },
    ).table
    first, second = table.to_pylist()
    day = datetime.datetime(2024, 3, 1)
    assert first == {
        **{"whole": 5, "half": 0.5, "money": 1.25, "yes": "true", "kind": "a"},
        **{"day": day, "time": day.replace(hour=12)},
    }
    assert set(second.values()) == {None} and type(first["whole"]) is int


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ("image,c\n1,2\n", "name", "has no column name: its columns are image, c"),
        ("image\n1\n", None, "no column besides image"),
        ("image,c\n", None, "has no rows"),
        ("", None, "no CSV file"),
        ("image,c\n1\n", None, "Expected 2 columns, got 1"),
        ("image,c\n1,ü\n".encode("latin-1"), None, "not UTF-8"),
        ("image,c\n1,ü\n".encode("utf-16"), None, "not UTF-8"),
        ("image,width\n1,2\n", None, "has a column width, as every image has"),
        ("image,outliers\n1,2\n", None, "has a column outliers"),
        ("image,c,c\n1,2,3\n", None, "several columns named c"),
        ("image,\n1,2\n", None, "a name for column 2 that no address can have"),
        ("image,-c\n1,2\n", None, "not beginning with a dash"),
        ("image," + "c" * 101 + "\n1,2\n", None, "1 to 100 printable characters"),
        ("image," + ",".join(f"c{n}" for n in range(100)) + "\n", None, "more than 100 columns"),
        (b"PAR1x", None, "damaged Parquet file"),
        (b"\x89PNG\r\n\x1a\n\0", None, "neither a CSV nor a Parquet file"),
        ({"image": ["1"], "c": [[1, 2]]}, None, "nested column, c"),
        ({"image": ["1"], "c": [datetime.time(1)]}, None, r"time64\[us\] in column c"),
        ({"image": [0.5], "c": [1]}, None, "double in column image, where names"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(tmp_path, content, key, message):
    with pytest.raises(PageError, match=message) as caught:
        read(tmp_path, content, key)
    assert "\n" not in caught.value.message and caught.value.message.endswith(".")


def test_byte_order_mark_and_quoted_line_breaks(tmp_path):
    file = read(tmp_path, '\ufeffc,"the\timage"\r\n"x\ny",a.jpg\r\n', "the\timage")
    assert (file.keys.to_pylist(), file.table.to_pylist()) == (["a.jpg"], [{"c": "x\ny"}])


NAMES = ["d/train/a.jpg", "d/train/b.jpg", "d/val/b.jpg", "d/val/c.v1.png", "e.jpg", "x/e.png"]


@pytest.mark.parametrize(
    ("keys", "rows"),
    [
        (["d/train/b.jpg", "gs://bucket/d/val/b.jpg", None, ""], [1, 2, -1, -1]),
        (["a.jpg", "c.v1", "c.v1.png", "c"], [0, 3, 3, -1]),
        (["e.jpg", "e.png"], [4, 5]),  # an object, and a file name
    ],
)
def test_images_are_named_by_object_file_name_or_identifier(keys, rows):
    for key, row in zip(keys, rows, strict=True):
        assert rows_of_keys(pa.chunked_array([[key]], pa.string()), NAMES).tolist() == [row]
    assert rows_of_keys(pa.chunked_array([keys[:2]]), [*NAMES, "\ud800.jpg"]).tolist() == rows[:2]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a", "b.jpg"], "b.jpg is the file name of several images: name images by object"),
        (["e", "b"], r"e is the identifier of several images \(and 1 more such rows\)"),
        (["a", "x", "a.jpg"], "Two rows are of image d/train/a.jpg: a and a.jpg"),
        (["a", "a", "a"], r"d/train/a.jpg: a, twice \(and 1 more such rows\)"),
    ],
)
def test_keys_that_match_twice_are_refused(keys, message):
    with pytest.raises(PageError, match=message):
        rows_of_keys(pa.chunked_array([keys]), NAMES)


def test_texts_to_choose_from():
    few = text_column(pa.array(["b", None, "a", "b", "c"]))
    assert few.values == ["b", "a", "c"] and few.codes.tolist() == [0, -1, 1, 0, 2]
    assert text_column(pa.array([str(row) for row in range(51)])).values == []


@pytest.fixture
def with_columns(server, dataset_name, tmp_path):
    """A dataset of ROWS measured images with the columns of CAMERAS."""
    server.publish(dataset_name, ROWS, failed={ROWS - 1}, measured=MEASURED)
    path = tmp_path / "cameras.csv"
    path.write_text(f"{CAMERAS}9.jpg;;;;\n", "utf-8-sig")
    before = server.dataset(dataset_name)
    done = server.command("columns", dataset_name, path).succeeded()
    assert "1 row names no image:\n      9.jpg\nColumns:\n" in done.stderr
    assert "=note: 3 texts" in done.stderr and "Added 4 columns for 4 of 6 images" in done.stderr
    assert server.dataset(dataset_name)["version"] != before["version"]
    return dataset_name


def test_columns_are_filters_orders_counts_and_exported(server, with_columns):
    page = server.typed(f"{with_columns}/dataset", page_types.DatasetPage)
    own = [one for one in page["fields"] if one["group"] == "column"]
    assert [(one["field"], one["kind"]) for one in own] == [("taken", "date"), ("weight", "number")]
    assert page["columns"][0] == {"column": "camera", "values": ["Nikon", "Canon", "Sony; α7"]}
    for query, rows in {
        "min_taken=2024-03-31": [1, 2],
        "min_taken=2024-03-01&max_taken=2024-03-31": [0, 1],
        "sort=-taken": [2, 1, 0],
        "sort=weight": [3, 0, 2],
        "max_weight=1.5": [0, 3],
        "is_camera=Nikon": [0, 2],
        "is_camera=Nikon&is_camera=Canon&sort=taken": [0, 1, 2],
        "is_camera=Leica": [],
        "sort=-colourfulness&max_contrast=10.04": [3, 0],
        "set=dark&threshold=41": [0, 1],
    }.items():
        assert server.rows(query, with_columns) == rows, query
    query = "is_camera=Nikon&max_weight=2"
    answer = server.typed(f"{with_columns}/histograms?{query}", page_types.HistogramList)
    found = {one["field"]: (sum(one["images"]), sum(one["chosen"])) for one in answer["histograms"]}
    assert (found["weight"], found["taken"], found["brightness"]) == ((3, 2), (3, 1), (5, 1))
    assert answer["texts"][0] == {"column": "camera", "images": [2, 1, 1], "chosen": [1, 0, 1]}
    places = server.array(f"{with_columns}/column/field?field=camera", "<f8")
    assert places[:4].tolist() == [0, 1, 0, 2] and np.isnan(places[4:]).all()
    detail = server.typed(f"{with_columns}/image/0", page_types.ImageDetail)
    shown = {one["title"]: one["text"] for one in detail["values"]}
    assert shown["Brightness"] == "30.0" and shown["taken"] == "2024-03-01"
    body = np.arange(ROWS, dtype="<i4").tobytes()
    text = fetch(f"{server.url}/page/{with_columns}/export?format=csv", body=body)[2].decode()
    rows = [row[8:] for row in csv.reader(io.StringIO(text))]
    assert rows[0] == ["taken", "weight", "camera", "'=note"]
    assert rows[1] == ["2024-03-01", "1.5", "Nikon", "'=1+1"]
    assert rows[3:5] == [["2024-05-01", "2.25", "Nikon", ""], ["", "-3.0", "Sony; α7", "c"]]
    assert rows[5] == ["", "", "", ""]


def test_columns_are_replaced_removed_and_left_alone_by_a_wrong_file(
    server, with_columns, tmp_path
):
    path = tmp_path / "other.csv"
    for content, message in {
        "a,b\nx.jpg,1\n": "other.csv is of an image of",
        "a,b\n0.jpg,1\n0,2\n": "Two rows",
    }.items():
        path.write_text(content)
        server.command("columns", with_columns, path).failed(message)
    assert len(server.dataset(with_columns)["columns"]) == 2
    assert server.command("columns", with_columns).exit_code == 2  # neither a file nor --remove
    path.write_text("a,size\n0.jpg,1\n")
    assert (
        "Replaced 4 earlier columns."
        in server.command("columns", with_columns, path).succeeded().stderr
    )
    assert [one["field"] for one in server.dataset(with_columns)["fields"]][-1] == "size"
    assert get(f"{server.url}/page/{with_columns}/rows?min_weight=1")[0] == 400
    done = server.command("columns", with_columns, "--remove").succeeded()
    assert "Removed 1 column." in done.stderr
    assert server.dataset(with_columns)["columns"] == []


def test_columns_of_another_index_or_damaged_are_not_shown(server, with_columns):
    path = max((server.data_dir / "columns").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    page = server.dataset(with_columns)
    assert page["columns"] == [] and "damaged" in page["warnings"][0]
    table = parquet.read_table(io.BytesIO(content))
    parquet.write_table(table.replace_schema_metadata({"forager": '{"index_id": "x"}'}), path)
    page = server.dataset(with_columns)
    assert page["columns"] == [] and page["warnings"] == []


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (["dark"], [0]),
        (["bright"], [3, 4]),
        (["blurred"], [1, 2, 4]),
        (["flat"], [0, 3]),  # contrast is compared in tenths
        (["dark", "--threshold", "41"], [0, 1]),
        (["bright", "--threshold", "255"], [4]),
    ],
)
def test_sets_of_images_that_look_bad(server, dataset_name, arguments, rows):
    server.publish(dataset_name, ROWS, failed={ROWS - 1}, measured=MEASURED)
    done = server.command("export", dataset_name, "--set", *arguments).succeeded()
    assert done.stdout.split() == [f"{dataset_name}/train/{row}.jpg" for row in rows]
    if len(arguments) == 1:
        assert server.rows(f"set={arguments[0]}", dataset_name) == rows
        report = server.typed(f"{dataset_name}/health", page_types.HealthReport)
        (finding,) = (one for one in report["findings"] if one["set"] == arguments[0])
        assert finding["images"] == len(rows)


def test_an_index_without_quality_says_so(server):
    page = server.dataset("d")
    reason = page["quality"]["reason"]
    assert not page["quality"]["available"] and "older version" in reason
    for query in ("min_brightness=1", "sort=-sharpness", "set=blurred"):
        assert get(f"{server.url}/page/d/rows?{query}") == (409, {"error": reason})
    assert "dark" not in {one["set"] for one in get(f"{server.url}/page/d/health")[1]["findings"]}
    server.command("export", "d", "--set", "flat").failed("made by an older version")


def changed_photographs():
    """(what it is, picture) of crops of photographs, and of these made bad; none of stars."""
    for _, name, crop in photographs.crops():
        if not name.startswith("hubble"):
            image = crop.convert("RGB").resize((round(200 * crop.width / crop.height), 200))
            yield "", image
            yield "dark", ImageEnhance.Brightness(image).enhance(0.25)
            yield "blurred", image.filter(ImageFilter.GaussianBlur(2.5))
            yield "flat", ImageEnhance.Contrast(image).enhance(0.08)
            yield "bright", Image.blend(image, Image.new("RGB", image.size, "white"), 0.85)


def test_bad_pictures_are_found_and_photographs_are_not():
    kinds, found = zip(*changed_photographs(), strict=True)
    measured = zip(*map(quality.measure, found), strict=True)
    fields = made_fields(**dict(zip(quality.Quality._fields, measured, strict=True)))
    index = made_index(["x"] * len(kinds), 0, fields=fields)
    for name in LIMITS:
        rows = set(beyond(index, name).tolist())
        assert rows >= {row for row, kind in enumerate(kinds) if kind == name}
        assert not rows & {row for row, kind in enumerate(kinds) if not kind}
