"""Label files in the three formats: their labels, or findings that each name a place."""

import json
import os
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.names import identifier
from common.terminal import size
from forager.generation import Box
from labels.file.checks import LabelFileError, nearly_built_in
from labels.file.read import read_label_file, read_labels
from labels.file.text import decode


def findings(document, file_format="forager", **options):
    """What is wrong with a document, given as text or as what JSON can hold."""
    text = document if isinstance(document, str | bytes) else json.dumps(document)
    if isinstance(text, str):
        text = text.encode(errors="surrogatepass")
    found = []
    try:
        read_labels(decode(text), file_format, **options)
    except LabelFileError as error:
        found = error.findings
    assert all(finding.isprintable() and finding.endswith(".") for finding in found)
    return found


NEARLY_POSITIVE = (
    'the mode "positive" of 2 labels is nearly POSITIVE, and Forager would store it as another '
    "mode: write POSITIVE, or add --allow_mode positive if it is right."
)


def box(**fields):
    return {"category": "x", "is_box": True, "x1": 1, "y1": 2, "x2": 3, "y2": 4} | fields


def of_a(*annotations):
    return {"a.jpg": [*annotations]}


BOX = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}


def coco(annotation=None, **lists):
    document = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [BOX | (annotation or {})],
    }
    return json.dumps(document | lists)


def test_the_three_formats():
    document = {
        "a/x.v1.jpg": ["cat", {"category": "dog"}, {"category": "cow", "value": "NEGATIVE"}],
        "w.png": [{"category": "cow", "mode": "far away"}, "cat"],
        "v": [{"category": "cat", "value": "UNSURE", "mode": "UNSURE", "is_box": False}],
        "u.jpg": [],
    }
    labels = read_labels(json.dumps(document))
    assert labels.boxes == []
    assert labels.paths == {"x.v1": "a/x.v1.jpg", "w": "w.png", "v": "v", "u": "u.jpg"}
    assert labels.groups == {
        ("cat", "POSITIVE"): ["w", "x.v1"],
        ("cat", "UNSURE"): ["v"],
        ("cow", "NEGATIVE"): ["x.v1"],
        ("cow", "far away"): ["w"],
        ("dog", "POSITIVE"): ["x.v1"],
    }


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf \n", "the file is empty"),
        ('{"a.jpg": ["x"\n, 5 "y"]}', "line 2, column 5: not valid JSON"),
        (b'{\n"a\xe9.jpg": []}', "line 2, column 3: byte 0xe9 is not UTF-8 text"),
        (b"\xef\xbb\xbf\xe9.jpg", "line 1, column 1: byte 0xe9 is not UTF-8 text"),
        ("{}".encode("utf-16"), "UTF-16"),
        ("{}".encode("utf-32-be"), "UTF-32"),
        ("path,category\na.jpg,cat", "expected a JSON object {image path: [annotation, ...]}: if"),
        ('{"a.jpg":' + "[" * 100_000, "nested"),
        ('{"a.jpg":' * 100_000, "nested"),
        ('{"a.jpg": [%s]}' % ("9" * 5000), "thousands of digits"),
        ([], "if this is CSV, add --format csv."),
        ('{"\x1b": []}', "not valid JSON"),
        ({"a.jpg": "cat"}, '["a.jpg"]: expected a list of annotations, got "cat"'),
        ('{"a.jpg": -Infinity}', '["a.jpg"]: expected a list of annotations, got -Infinity'),
        (of_a("x", "y", {"category": 5}), '["a.jpg"][2].category: expected a string, got 5'),
        ('{"a.jpg": [NaN]}', '["a.jpg"][0]: expected "CATEGORY" or {"category": "CATEGORY", '),
        (of_a(None), "got null"),
        (of_a(["x"]), "got a list"),
        (of_a({}), '["a.jpg"][0]: expected a "category"'),
        (of_a(""), '["a.jpg"][0]: the text is empty'),
        (of_a({"category": "x", "value": ""}), '["a.jpg"][0].value: the text is empty'),
        (of_a({"category": "x", "mode": None}), '["a.jpg"][0].mode: expected a string'),
        (of_a("x" * 301), "301 characters, at most 300 are allowed"),
        (of_a("x\0"), "NUL"),
        (of_a("\ud800"), "surrogate"),
        (
            of_a({"category": "x", "value": "A", "mode": "B"}),
            '["a.jpg"][0]: "value" and "mode" both name the mode, but differ: "A" and "B"',
        ),
        (of_a({"category": "x", "vlaue": "A"}), '["a.jpg"][0].vlaue: unknown'),
        (of_a({"category": "x", "\x1b": 1}), r'["a.jpg"][0]["\x1b"]: unknown'),
        (of_a({"category": "x", "bbox": [1, 2]}), '.bbox: unknown; a box has "is_box": true'),
        (of_a(box() | {"z": 1}), '.z: unknown; a box has "is_box": true'),
        (of_a({"category": "x", "is_box": 1}), ".is_box: expected true or false, got 1"),
        (of_a({"category": "x", "is_box": True}), "the box has no x1 and no y1 and no x2"),
        (of_a({"category": "x", "x1": 1}), '.x1: unknown; a box has "is_box": true'),
        (of_a(box(x1="1")), '["a.jpg"][0].x1: expected a number, got "1"'),
        (of_a(box(x1=True)), ".x1: expected a number, got true"),
        (of_a(box(y2=float("inf"))), ".y2: expected a finite number, 0 or more, got Infinity"),
        (of_a(box(y2=float("nan"))), ".y2: expected a finite number, 0 or more, got NaN"),
        (of_a(box(x2=10**400)), ".x2: expected a finite number, 0 or more, got 1000"),
        (of_a(box(x1=-0.5)), ".x1: expected a finite number, 0 or more, got -0.5"),
        (of_a(box(x1=3)), '["a.jpg"][0]: the box has no width: x1 is 3, x2 is 3'),
        (of_a(box(y1=4.5)), '["a.jpg"][0]: the box has no height: y1 is 4.5, y2 is 4'),
        (of_a(box(), "x", box(x2=3.0)), '["a.jpg"][0] and [2]: the same box twice'),
        (
            of_a("y", "x", {"category": "x", "value": "NEGATIVE"}),
            '["a.jpg"][1] and [2]: two annotations of the category "x" on one image',
        ),
        ('{"a.jpg": ["x"], "a.jpg": ["y"]}', '["a.jpg"]: given more than once'),
        (
            '{"a.jpg": [{"category": "x", "category": "y"}]}',
            '["a.jpg"][0].category: given more than once',
        ),
        (
            {"a/x.jpg": [], "b/x.png": []},
            '["a/x.jpg"] and ["b/x.png"] are the same image, "x"',
        ),
        ({"": []}, '[""]: names no image'),
        ({"x" * 301 + ".jpg": []}, "longer than 300"),
        ({"a\0.jpg": []}, r'["a\x00.jpg"]: holds a NUL character'),
        ('{"info": {}, "images": [{"id": 5, ', "this is a COCO file: add --format coco"),
        ({"\u202egpj.a": 1}, r'["\u202egpj.a"]: expected a list'),
    ],
    ids=lambda value: str(value)[:30],
)
def test_one_finding(document, words):
    found = findings(document)
    assert len(found) == 1
    assert words in found[0]


def test_boxes():
    document = {
        "a/x.jpg": [box(), box(x1=2), box(category="dog"), "x", box(mode="far away", y1=0)],
        "y.jpg": [box(value="NEGATIVE")],
    }
    labels = read_labels(json.dumps(document))
    assert labels.groups == {("x", "POSITIVE"): ["x"]}
    assert labels.boxes == [
        Box("x", "x", "POSITIVE", 1.0, 2.0, 3.0, 4.0),
        Box("x", "x", "POSITIVE", 2.0, 2.0, 3.0, 4.0),
        Box("x", "dog", "POSITIVE", 1.0, 2.0, 3.0, 4.0),
        Box("x", "x", "far away", 1.0, 0.0, 3.0, 4.0),
        Box("y", "x", "NEGATIVE", 1.0, 2.0, 3.0, 4.0),
    ]


def test_all_findings_are_told():
    document = {"a.jpg": [5, {"category": 5, "mode": 6, "x": 7}], "b.jpg": 8}
    assert len(findings(document)) == 5


def test_very_many_findings_end_the_reading():
    found = findings({f"{number}.jpg": [1, 2, 3] for number in range(40_000)})
    assert 100_000 < len(found) < 100_010
    assert found[-1] == "The rest of the file was not read."


def test_an_image_may_be_named_like_a_list_of_coco():
    document = {"images": [{"category": "x"}], "annotations": ["y"], "categories": []}
    assert read_labels(json.dumps(document)).groups == {
        ("x", "POSITIVE"): ["images"],
        ("y", "POSITIVE"): ["annotations"],
    }


categories = st.text(min_size=1, max_size=5, alphabet="abcé ").filter(str.strip)
one_image = st.dictionaries(categories, st.sampled_from(["POSITIVE", "NEGATIVE", "far away"]))


@given(st.dictionaries(st.text("xyzé.", min_size=1, max_size=9).map("d/{}.jpg".format), one_image))
def test_every_annotation_of_a_correct_file_is_grouped(by_path):
    document = {
        path: [{"category": category, "value": mode} for category, mode in annotations.items()]
        for path, annotations in by_path.items()
    }
    groups = read_labels(json.dumps(document)).groups
    assert sorted((i, c, m) for (c, m), images in groups.items() for i in images) == sorted(
        (identifier(p), c, m) for p, annotations in by_path.items() for c, m in annotations.items()
    )
    assert all(images == sorted(images) for images in groups.values())


ANNOTATIONS = ["cat", {"category": "é\n", "value": "NEGATIVE"}, box(category="dog")]
PIECES = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\ud800", b"\xff", b"1e999", b"NaN"]
PIECES += [b"null", b'"category"', b'"mode"', b'"bbox"', b"\0", b"\xef\xbb\xbf", b"-", b"\n", b"\r"]
PIECES += [b"9" * 5000]
TOKENS = re.compile(rb'"[^"]*"|-?[\d.]+|true|[^"]')
VALUES = [b"null", b"true", b"5", b"-1.5", b"1e999", b"NaN", b"1" + b"0" * 400, b"{}", b"[]"]
VALUES += [b'["cat"]', b'"cat"', b'"mode"', b'"is_box"', b'"\\ud800"', b'"\\u202e\\u0000"', b'""']
VALUES += [b'"' + b"a/." * 200 + b'"', b'{"category": "cat", "x1": 5}', b'[{"category": ["cat"]}]']


def spliced(data, source):
    """With pieces cut out and put in anywhere."""
    data = bytearray(data)
    for _ in range(source.choice([0, 1, 1, 2, 5, 20])):
        start = source.randrange(len(data) + 1)
        end = start + source.choice([0, 1, 3, 30])
        data[start:end] = source.choice([*PIECES, data[:30], source.randbytes(2)])
    return bytes(data)


def with_other_values(data, source):
    """With other values and keys, so that JSON mostly stays JSON."""
    tokens = TOKENS.findall(data)
    values = [number for number, token in enumerate(tokens) if token not in b'{}[]:, "']
    for number in source.sample(values, source.choice([1, 2, 5])):
        tokens[number] = source.choice(VALUES)
    return b"".join(tokens)


@pytest.mark.parametrize(
    ("base", "file_format", "files"),
    [
        (json.dumps({f"d/{i}.jpg": ANNOTATIONS for i in range(5)}), "forager", 5_000),
        (coco(), "coco", 2_000),
        ("path,category\n" + "a.jpg,cat,P\n" * 5, "csv", 2_000),
    ],
    ids=["forager", "coco", "csv"],
)
def test_fuzz_files_with_random_changes(base, file_format, files):
    """Labels or findings, no traceback."""
    source = random.Random(0)
    data = base.encode()
    changed = [
        with_other_values if n % 2 and file_format != "csv" else spliced for n in range(files)
    ]
    outcomes = {bool(findings(change(data, source), file_format)) for change in changed}
    assert outcomes == {True, False}


COMMA = "there is a comma before the closing {}: delete it"
INCOMPLETE = "the file ends here, before its last bracket: is it complete?"


@pytest.mark.parametrize(
    ("text", "place", "cause"),
    [
        ('{"a.jpg": ["x",]}', 15, COMMA.format("]")),
        ('{"a.jpg": ["x"] ,\n}', 17, COMMA.format("}")),
        ('{"a.jpg": [{"category": "x",}]}', 28, COMMA.format("}")),
        ("{'a.jpg': ['x']}", 2, "strings are written in double quotes"),
        ("{\"a.jpg\": ['x']}", 12, "strings are written in double quotes"),
        ('{"a.jpg": ["x"]', 16, INCOMPLETE),
        ('{"a.jpg": ["x]}', 12, "the string that begins here has no end"),
        ('{"a.jpg": [x]}', 12, "a value is expected here"),
        ('{a.jpg: ["x"]}', 2, "a key in double quotes is expected here"),
        ('{"a.jpg" ["x"]}', 10, "a colon is expected here"),
        ('{"a.jpg": ["x" "y"]}', 16, "a comma or a closing bracket is expected here"),
        ('{"a.jpg": []} {}', 15, "something follows the end of the document"),
    ],
)
def test_text_that_is_no_json(text, place, cause):
    assert findings(text) == [f"line 1, column {place}: not valid JSON ({cause})."]


@pytest.mark.parametrize(
    "document",
    [
        *({"a.jpg": ["x.jpg"]}, {"a": ["cat"]}, {"a": ["x.jpg", "cat"]}, {"a": []}),
        {"a": ["x.jpg"]},  # which images there are is not known here
        {f"{'é' * 300}.jpg": [{"category": "é" * 300, "value": "é" * 300}]},
        b'\xef\xbb\xbf{"a.jpg": ["x"]}',
    ],
)
def test_files_that_may_be_meant_as_they_are(document):
    assert findings(document) == []


def test_a_mode_that_is_nearly_a_built_in_one_is_one_finding():
    nearly_positive = {"category": "x", "value": "positive"}
    document = {"a.jpg": [nearly_positive], "b.jpg": [nearly_positive]}
    assert findings(document) == [NEARLY_POSITIVE]
    assert findings("a.jpg,x,positive\nb.jpg,x,positive\n", "csv") == [NEARLY_POSITIVE]
    assert findings(document, allowed_modes=("positive",)) == []
    assert findings(document, allowed_modes=("Positive",)) == [NEARLY_POSITIVE]


def test_the_mode_of_a_box_is_checked_and_quoted_for_the_shell():
    (said,) = findings({"a.jpg": [box(mode="hard negative")]})
    assert said.startswith('the mode "hard negative" of 1 label is nearly HARD_NEGATIVE, and')
    assert "add --allow_mode 'hard negative' if it is right." in said


@pytest.mark.parametrize(
    ("mode", "meant"),
    [
        *(("positive", "POSITIVE"), ("Positve", "POSITIVE"), ("POSITIVES", "POSITIVE")),
        *(("POSITIVE ", "POSITIVE"), ("NEGAITVE", "NEGATIVE"), ("unsude", "UNSURE")),
        *(("Hard-Negative", "HARD_NEGATIVE"), ("hardnegative", "HARD_NEGATIVE")),
        *(("POSITIVE", ""), ("HARD_NEGATIVE", ""), ("occluded", ""), ("sure", ""), ("P", "")),
        *(("", ""), ("POSTV", ""), ("SOFT_NEGATIVE", "")),
    ],
)
def test_modes_that_are_nearly_built_in_ones(mode, meant):
    assert (nearly_built_in(mode) or "") == meant


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (coco({"bbox": None}), "got null; --as_labels stores categories of whole images."),
        (coco({"image_id": "1"}), 'the id "1" is 1 in the list images: write ids of both lists'),
        (coco({"bbox": [1, 2, 3]}), "expected [x, y, width, height], got a list"),
        (coco({"bbox": [1, 2, 3, "4"]}), 'annotations[0].bbox: expected a number, got "4"'),
        (coco({"bbox": [1, 2, -3, 4]}), "expected a finite number, 0 or more, got -3"),
        (coco({"bbox": [1, 2, 0, 4]}), "annotations[0].bbox: the box has no width"),
        (coco({"bbox": [1, 2, 3, 1e-30]}), "annotations[0].bbox: the box has no height"),
        (
            coco({"image_id": 2}),
            "annotations[0].image_id: no element of the list images has the id 2",
        ),
        (
            coco({"category_id": 0}),
            "annotations[0].category_id: no element of the list categories has the id 0",
        ),
        (
            coco({"image_id": None}),
            "annotations[0].image_id: expected a number or a text, got null",
        ),
        (
            coco({"image_id": [1]}),
            "annotations[0].image_id: expected a number or a text, got a list",
        ),
        (
            coco(annotations=[BOX, BOX | {"bbox": [1, 2, 3, 5]}, BOX]),
            "[0] and annotations[2]: the sa",
        ),
        ('{"images": [{"id": 1},]}', "line 1, column 22: not valid JSON (there is a comma before"),
        (coco(annotations=[5]), "annotations[0]: expected an object, got 5"),
        (coco(annotations={}), "there is no list annotations"),
        (coco(categories=[{"id": 1}]), "categories[0].name: expected a string, got null"),
        (coco(categories=[{"id": 1, "name": " "}]), "categories[0].name: the text is empty"),
        (coco(categories=[{"id": 1, "name": c} for c in "ab"]), "categories[1].id: another cat"),
        (coco(images=[{"id": 1, "file_name": c} for c in "ab"]), "images[1].id: another image has"),
        (coco(images=[{"id": 1}]), "images[0].file_name: expected a string, got null"),
        (coco(images=[{"id": 1, "file_name": "a/"}]), "images[0].file_name: names no image"),
        ("{}", "there is no list annotations and no categories and no images"),
        (coco({"bbox": [1e308, 0, 1e308, 1]}), "annotations[0].bbox: the box has no width"),
        (coco({"bbox": [0, 1e308, 1, 1e308]}), "annotations[0].bbox: the box has no height"),
    ],
)
def test_coco(text, words):
    assert words in " ".join(findings(text, "coco"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.jpg,cat\nb.jpg", "line 2: expected path,category or path,category,mode, got 1 field"),
        ("a.jpg,cat,P,x", "line 1: expected path,category or path,category,mode, got 4 fields"),
        ("a.jpg,cat\n\na.jpg,cat,NEGATIVE", "lines 1 and 3: two annotations of the category"),
        ("a.jpg,", "line 1: the text is empty"),
        (",cat", "line 1: names no image"),
        ("x/a.jpg,cat\ny/a.png,cow", "are the same image"),
        ('a.jpg,"cat\nb.jpg,dog', "line 1: a quote opens a field there and has no end: close it"),
        ('a.jpg,"a "cat"', 'line 1: text follows the quote that closes a field: write ""'),
        ("a.jpg,cat,P,x", "got 4 fields. Write a field that has a comma in double quotes."),
        ("sep=;\na.jpg;cat", "line 1: the fields are separated by ';': save the file with commas"),
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


def test_a_file_larger_than_memory(tmp_path):
    path = tmp_path / "labels.json"
    path.touch()
    os.truncate(path, 10**12)  # sparse: it takes no space
    with pytest.raises(LabelFileError, match=f"it has {size(10**12)}, and with .*split it"):
        read_label_file(path, "forager")


@pytest.mark.parametrize(("path", "kind"), [("/dev/zero", "a device"), ("/tmp", "a directory")])
def test_what_is_no_regular_file(path, kind):
    with pytest.raises((LabelFileError, IsADirectoryError)) as caught:
        read_label_file(Path(path), "forager")
    assert kind.split()[-1] in str(caught.value)
