"""Exports over HTTP and by the command, with hostile names and many rows."""

import csv
import io
import json
import tracemalloc

import numpy as np
import pytest

import ingest_labels
from local_forager import export as export_formats
from local_forager.indexes.index import LabelTable, class_name
from local_forager.types import PageError
from tests.harness import invoked
from tests.local_forager.page_server import COPY, FAILED, fetch, made_index

HOSTILE = ["=cmd|' /C calc'!A0.jpg", "@SUM(1).jpg", "+1.jpg", "-1.jpg", 'a",b\n.jpg', "\tx.jpg"]


def text(format_, index, rows, label=None, table=None):
    table = table or LabelTable({}, {}, {})
    return "".join(export_formats.export(format_, index, table, rows, label))


def test_csv_cells_are_no_formulas():
    labels = [{"category": text, "mode": "m", "user": "u"} for text in ("=1", "a;@b", "-\t+")]
    table = LabelTable({0: labels}, {}, {})
    rows = list(csv.reader(io.StringIO(text("csv", made_index(HOSTILE, 6), range(6), table=table))))
    assert [row[0] for row in rows[1:]] == [
        name if name.startswith("a") else f"'{name}" for name in HOSTILE
    ]
    assert rows[1][2:4] == ["'=1=m; a;'@b=m;' -\t'+=m", "3"]


def test_a_name_is_one_line():
    assert text("names", made_index(HOSTILE, 6), [4]) == 'a",b\\n.jpg\n'


def test_label_file_names_each_image_once():
    index = made_index(["x/a.jpg", "y/a.png", "b.jpg"], 3)
    label = export_formats.label_to_export("c", "POSITIVE")
    document = json.loads(text("labels", index, range(3), label))
    assert document == {"x/a.jpg": [{"category": "c"}], "b.jpg": [{"category": "c"}]}
    assert json.loads(text("labels", index, [], label)) == {}


@pytest.mark.parametrize("category", ["", " ", "x" * 301, "\0", "\ud800"])
def test_category_that_forager_cannot_store(category):
    with pytest.raises(PageError):
        export_formats.label_to_export(category, "POSITIVE")


@pytest.mark.parametrize("format_", ["names", "csv", "labels"])
def test_many_images_are_streamed(format_):
    rows = 40_000
    index = made_index([f"d/{row:07}.jpg" for row in range(rows // 2)] * 2, rows)
    label = export_formats.label_to_export("c", "POSITIVE")
    class_name(0)  # reads the names of all classes
    tracemalloc.start()
    try:
        pieces = export_formats.export(format_, index, LabelTable({}, {}, {}), range(rows), label)
        size = sum(map(len, pieces))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 500_000
    assert peak < (12_000_000 if format_ == "labels" else 400_000)  # the names written so far


def test_export_over_http(server):
    url = f"{server.url}/page/d/export?format=names"
    status, headers, body = fetch(url, body=np.array([79, 0, 0], "<i4").tobytes())
    assert status == 200 and body == b"d/train/t00.jpg\nd/val/v19.jpg\n"
    assert headers["Content-Disposition"] == 'attachment; filename="d-names.txt"'
    for wrong in (np.array([80], "<i4"), np.array([-1], "<i4"), np.array([1], "u1")):
        assert fetch(url, body=wrong.tobytes())[0] == 400
    assert fetch(f"{server.url}/page/d/export?format=labels", method="POST")[0] == 400


@pytest.mark.parametrize(
    ("which", "rows"),
    [
        ("failed", [FAILED]),
        ("exact_duplicates", [2, COPY]),
        ("near_duplicates", [2, COPY]),
        ("leaks", [2, COPY]),
        ("contradictions", []),
    ],
)
def test_export_command(server, emulator, which, rows):
    done = server.command("export", "d", "--set", which, "--by", "imagenet").succeeded()
    names = [f"d/train/t{row:02}.jpg" if row < 60 else f"d/val/v{row - 60:02}.jpg" for row in rows]
    assert done.stdout.split() == names


def test_export_all_but_the_kept_image(server, emulator):
    near = "d", "--set", "near-duplicates"  # dashes are accepted everywhere
    assert server.command("export", *near, "--keep", "one").succeeded().stdout == "d/val/v05.jpg\n"
    far = *near, "--distance", "0.3"
    every = server.command("export", *far).succeeded().stdout.split()
    dropped = server.command("export", *far, "--keep", "one").succeeded().stdout.split()
    sent = server.rows("set=near&distance=0.3")
    names = [f"d/train/t{row:02}.jpg" if row < 60 else f"d/val/v{row - 60:02}.jpg"
             for row in sorted(row for row in sent if row >= 0)]  # fmt: skip
    assert dropped == names and len(every) == len(sent)


def test_exported_label_file_is_read_by_ingest_labels(server, emulator, tmp_path, dataset_name):
    server.publish(dataset_name, 4, same={3: 1})
    out = tmp_path / "twins.json"
    label = "--format", "labels", "--category", "twin", "--mode", "far away"
    copies = dataset_name, "--set", "exact_duplicates"
    done = server.command("export", *copies, *label, "--out", str(out)).succeeded()
    assert "Exported 2 images." in done.stderr
    value = [{"category": "twin", "mode": "far away"}]
    assert json.loads(out.read_text()) == {
        f"{dataset_name}/train/{row}.jpg": value for row in (1, 3)
    }
    labels = dataset_name, str(out), "--user", "a@b.c"
    invoked(ingest_labels.main, labels, env={"SERVER_URL": server.url}).succeeded()
    (category,) = server.dataset(dataset_name)["categories"]
    assert category["category"] == "twin"
    assert category["modes"] == [{"mode": "far away", "count": 2}]


def test_the_name_of_the_file_chooses_the_format(server, emulator, tmp_path):
    for name, options, first in (
        ("a.csv", [], "object,split"),
        ("a.json", ["--category", "c"], "{"),
        ("a.txt", [], "d/train/"),
        ("b.csv", ["--format", "names"], "d/train/"),
    ):
        server.command("export", "d", "--out", str(tmp_path / name), *options).succeeded()
        assert (tmp_path / name).read_text().startswith(first)
