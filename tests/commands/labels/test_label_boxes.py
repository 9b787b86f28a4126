"""Boxes, and label files in other formats, against the local Forager."""

import json

import pytest

from tests.commands.labels.label_command import BOXES, GOOD, STORED, WITH_BOXES, box, failing
from tests.harness import Emulated

LABELS = sorted([*STORED, ("c", "cat", "POSITIVE")])


def test_boxes_are_stored(server_b, run):
    _, out, err = run(server_b.url, WITH_BOXES).succeeded()
    assert err.count("not checked that boxes are inside their images") == 1
    assert out.splitlines() == [
        "category  mode      asked  created  boxes  boxes created",
        "cat       NEGATIVE      0        0      1              1",
        "cat       POSITIVE      4        4      2              2",
        "cat       far away      1        1      0              0",
        "dog       NEGATIVE      1        1      0              0",
        "dog       far away      0        0      1              1",
        "",
        "6 of 6 labels and 4 of 4 boxes created in 4 requests. Look at them at "
        f"{server_b.url}/birds",
    ]
    assert server_b.ask("SELECT DISTINCT user, created_by FROM box") == [("ann@x.org", "ingest")]
    assert run(server_b.url, WITH_BOXES)[0] == 0  # finished: nothing is sent
    assert server_b.stored() == LABELS
    assert server_b.boxes() == BOXES


def test_boxes_on_generation_a(server_a, run):
    run(server_a.url, WITH_BOXES).refused(
        "This server stores no boxes, and", "labels.json has 4 boxes: add --skip_boxes"
    )
    run(server_a.url, WITH_BOXES, "--skip_boxes").succeeded(
        "6 of 6 labels created in 3 requests; 4 boxes skipped."
    )
    assert server_a.stored() == LABELS


def test_boxes_sent_again_are_stored_twice(server_b, run):
    assert run(server_b.url, WITH_BOXES)[0] == 0
    err = run(server_b.url, WITH_BOXES).succeeded().stderr
    assert "6 of 6 labels and 4 of 4 boxes created. Nothing was sent now." in err
    assert "add --again: this server then stores 4 boxes a second time." in err
    assert server_b.boxes() == BOXES
    err = run(server_b.url, WITH_BOXES, "--again").succeeded().stderr
    assert "Starting over: this server stores 4 boxes of an earlier run a second time" in err
    assert "that run stored it; Forager shows both copies of a box.\n" in err
    err = run(server_b.url, WITH_BOXES | {"z.jpg": []}).succeeded().stderr
    assert "another version of this label file, with 4 boxes." in err
    assert server_b.boxes() == sorted(BOXES * 3)


def test_other_boxes_of_a_finished_file(server_b, run):
    document = WITH_BOXES | {"z.jpg": ["cat"]}
    assert run(server_b.url, document, "--skip_unknown")[0] == 0
    run(server_b.url, document, "--skip_unknown", "--bucket", "no-such-bucket").failed(
        "This server would store 4 boxes a second time: add --again if you want that."
    )
    assert server_b.boxes() == BOXES


def test_boxes_that_were_skipped_are_sent_later(server_b, run):
    assert run(server_b.url, WITH_BOXES, "--skip_boxes")[0] == 0
    assert server_b.boxes() == []
    assert run(server_b.url, WITH_BOXES)[0] == 0
    assert server_b.boxes() == BOXES
    assert server_b.stored() == LABELS


def test_a_dry_run_counts_boxes(server_b, run):
    run(server_b.url, WITH_BOXES, "--dry_run").succeeded(
        "6 labels and 4 boxes in 4 requests would be sent",
        "What it has already of the boxes is stored a second time.\n",
    )
    assert server_b.boxes() == []


def test_boxes_on_unknown_images_without_an_index(server_b, run):
    run(server_b.url, {"a.jpg": [box()], "z.jpg": [box()]}, name="noindex").failed(
        "HTTP 500 (KeyError at /api/add_annotations_multi_v2",
        "refuses all boxes of a request if the dataset lacks one image.",
    )
    assert server_b.boxes() == []


def test_a_damaged_journal_with_boxes(server_b, run, tmp_path):
    with failing(server_b, None, None, None, None, "400") as proxy:
        assert run(proxy.url, WITH_BOXES)[0] == 0
        (tmp_path / "labels.json.birds.journal").write_text("{}")
        code, _, err = run(proxy.url, WITH_BOXES)
    assert code == 1
    assert "which may store 4 boxes a second time." in err
    assert server_b.boxes() == BOXES


def test_boxes_outside_their_images(server_b, run, bucket, emulator):
    """The manifest of the index, if there is one, tells the sizes of the images."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"identifier": ["a", "c", "d"], "width": [99, 41, None], "height": [99, 60, None]}
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), sink)
    manifest = bucket, "indexes/i/manifest.parquet"
    Emulated(emulator).put(*manifest, sink.getvalue().to_pybytes())
    try:
        document = {"a.jpg": [box(x2=900)], "c.jpeg": [box(x2=41)], "d.jpg": [box(x2=1e6)]}
        run(server_b.url, document).failed(
            "The box 10, 20, 900, 60 of 'cat' on a is not inside the image of 99 x 99",
            "labels.json has 1 problem:",
        )
        assert run(server_b.url, {"c.jpeg": [box(x2=41.4)]}).succeeded().stderr == ""
    finally:
        Emulated(emulator).delete(*manifest)


COCO = {
    "info": {"images": []},
    "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog", "supercategory": "pet"}],
    "annotations": [
        {"image_id": 5, "category_id": 1, "bbox": [10, 20, 30.5, 40], "segmentation": [[1, 2]]},
        {"image_id": 5, "category_id": 1, "bbox": [10, 20, 31, 40], "iscrowd": 1},
        {"image_id": 6, "category_id": 7, "bbox": [0, 0, 1, 1]},
    ],
    "images": [{"id": 5, "file_name": "t/a.jpg", "width": 640}, {"id": 6, "file_name": "d.jpg"}],
}


def test_coco(server_b, run):
    run(server_b.url, COCO, "--format", "coco").succeeded(
        "0 of 0 labels and 3 of 3 boxes created in 1 request."
    )
    assert server_b.boxes() == [
        ("a", "cat", "POSITIVE", 10, 20, 40.5, 60),
        ("a", "cat", "POSITIVE", 10, 20, 41, 60),
        ("d", "dog", "POSITIVE", 0, 0, 1, 1),
    ]


def test_coco_as_labels(server, run):
    run(server.url, COCO, "--format", "coco", "--as_labels").succeeded()
    assert server.stored() == [("a", "cat", "POSITIVE"), ("d", "dog", "POSITIVE")]


def test_csv(server, run):
    text = 'path,category,mode\r\nx/a.jpg,cat,\r\nx/a.jpg,dog,NEGATIVE\n\nb.v1.png,"cat, far"\n'
    assert run(server.url, text, "--format", "csv")[0] == 0
    assert server.stored() == [
        ("a", "cat", "POSITIVE"),
        ("a", "dog", "NEGATIVE"),
        ("b.v1", "cat, far", "POSITIVE"),
    ]


@pytest.mark.parametrize(
    ("options", "text", "words"),
    [
        (["--format", "coco"], json.dumps(GOOD), "expected a COCO file of instances"),
        (["--format", "coco"], "[]", "expected a COCO file of instances"),
        (["--format", "csv"], json.dumps(GOOD), "this is JSON, not CSV: use --format forager"),
        ([], json.dumps(COCO), "this is a COCO file: add --format coco."),
        (["--format", "voc"], "{}", "'voc' is not one of 'forager', 'coco', 'csv'"),
        (["--as_labels"], "{}", "--as_labels goes with --format coco."),
        ([], '{"cat": ["b.v1", "é"]}', 'gives "cat" the label "b.v1": it maps categories to'),
    ],
)
def test_another_format_than_said(server_b, run, options, text, words):
    code, out, err = run(server_b.url, text, *options)
    assert code in (1, 2)
    assert words in err
    assert out == ""
