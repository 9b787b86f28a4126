"""Findings in COCO and CSV files; what is correct is tested with the command."""

import json
import random
from pathlib import Path

import pytest

from common.terminal import size
from labels.file.checks import LabelFileError
from labels.file.read import read_label_file, read_labels


def findings(text, file_format):
    try:
        read_labels(text, file_format)
    except LabelFileError as error:
        assert all(finding.isprintable() for finding in error.findings)
        return error.findings
    return []


def coco(annotation=None, **lists):
    first = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]} | (annotation or {})
    document = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [first],
    }
    return json.dumps(document | lists)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (coco({"bbox": None}), "annotations[0].bbox: expected [x, y, width, height], got null"),
        (coco({"bbox": [1, 2, 3]}), "expected [x, y, width, height], got a list"),
        (coco({"bbox": [1, 2, 3, "4"]}), 'annotations[0].bbox: expected a number, got "4"'),
        (coco({"bbox": [1, 2, -3, 4]}), "expected a number that is not negative, got -3"),
        (coco({"bbox": [1, 2, 0, 4]}), "annotations[0].bbox: the box has no width"),
        (coco({"bbox": [1, 2, 3, 1e-30]}), "annotations[0].bbox: the box has no height"),
        (coco({"image_id": 2}), "annotations[0].image_id: nothing in the file has the id 2"),
        (coco({"category_id": 0}), "annotations[0].category_id: nothing in the file has the id 0"),
        (coco({"image_id": None}), "annotations[0].image_id: expected a number, got null"),
        (coco({"image_id": [1]}), "annotations[0].image_id: expected a number, got a list"),
        (coco(annotations=[5]), "annotations[0]: expected an object, got 5"),
        (coco(annotations={}), "there is no list annotations"),
        (coco(categories=[{"id": 1}]), "categories[0].name: expected a string, got null"),
        (coco(categories=[{"id": 1, "name": " "}]), "categories[0].name: the text is empty"),
        (coco(categories=[{"id": 1, "name": c} for c in "ab"]), "categories[1].id: another cat"),
        (coco(images=[{"id": 1, "file_name": c} for c in "ab"]), "images[1].id: another image has"),
        (coco(images=[{"id": 1}]), "images[0].file_name: expected a string, got null"),
        (coco(images=[{"id": 1, "file_name": "a/"}]), "images[0].file_name: names no image"),
        ("{}", "there is no list annotations and no categories and no images"),
        ('{"images": [1', "line 1, column 14: not valid JSON (the file ends here"),
        (coco() + "x", "not valid JSON (something follows the end of the document)"),
    ],
)
def test_coco(text, words):
    assert words in " ".join(findings(text, "coco"))


def test_coco_boxes_twice():
    box = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
    found = findings(coco(annotations=[box, {**box, "bbox": [1, 2, 3, 5]}, box]), "coco")
    assert found == ["annotations[0] and [2]: the same box twice."]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.jpg,cat\nb.jpg", "line 2: expected path,category or path,category,mode, got 1 field"),
        ("a.jpg,cat,P,x", "line 1: expected path,category or path,category,mode, got 4 fields"),
        ("a.jpg,cat\n\na.jpg,cat,NEGATIVE", "lines 1 and 3: two annotations of the category"),
        ("a.jpg,", "line 1: the text is empty"),
        (",cat", "line 1: names no image"),
        ("x/a.jpg,cat\ny/a.png,cow", "are the same image"),
        ('a.jpg,"cat', "line 1: not valid CSV"),
        ("a.jpg,ca\0t", "NUL"),
        ("filename,label\na.jpg,cat", "mode as columns, got filename,label."),
        ("category,path\ncat,a.jpg", "line 1: expected path,category or path,category,mode as col"),
        ("path;category\na.jpg;cat", "with commas, got semicolons."),
        ("a.jpg\tcat", "line 1: expected path,category or path,category,mode with commas, got ta"),
        ('{"a.jpg": ["cat"]}', "this is JSON, not CSV: use --format forager or --format coco."),
        ("a.jpg," + "x" * 200_000, "line 1: not valid CSV (field larger than field limit"),
    ],
)
def test_csv(text, words):
    assert words in " ".join(findings(text, "csv"))


def test_csv_as_spreadsheets_write_it():
    """A byte order mark is tested with JSON."""
    for end in ("\n", "\r\n", "\r"):
        text = f'Path, Category{end}"a, b.jpg", cat{end}{end}label,path{end}'
        assert read_labels(text, "csv").groups == {
            ("cat", "POSITIVE"): ["a, b"],
            ("path", "POSITIVE"): ["label"],
        }


@pytest.mark.parametrize("file_format", ["coco", "csv"])
def test_fuzz_2_000_files(file_format):
    """Files with random cuts and splices: labels or findings, no traceback."""
    source = random.Random(0)
    base = coco() if file_format == "coco" else "path,category\n" + "a.jpg,cat,P\n" * 5
    pieces = list('{}[]",:\n\r\0') + ["null", "1e999", "NaN", '"bbox"', "\ud800", "9" * 5000]
    for _ in range(2_000):
        text = base
        for _ in range(source.choice([0, 1, 1, 2, 5])):
            start = source.randrange(len(text) + 1)
            piece = source.choice([*pieces, base[:30]])
            text = text[:start] + piece + text[start + source.choice([0, 1, 3, 30]) :]
        findings(text, file_format)


def test_a_file_larger_than_memory(tmp_path):
    path = tmp_path / "labels.json"
    with open(path, "wb") as file:
        file.truncate(10**12)  # sparse: it takes no space
    with pytest.raises(LabelFileError) as caught:
        read_label_file(path, "forager")
    assert f"it has {size(10**12)}, and with " in caught.value.findings[0]
    assert "split it" in caught.value.findings[0]


@pytest.mark.parametrize(("path", "kind"), [("/dev/zero", "a device"), ("/tmp", "a directory")])
def test_what_is_no_regular_file(path, kind):
    with pytest.raises((LabelFileError, IsADirectoryError)) as caught:
        read_label_file(Path(path), "forager")
    assert kind.split()[-1] in str(caught.value)
