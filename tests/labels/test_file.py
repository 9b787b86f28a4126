import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.names import identifier
from forager.generation import Box
from labels.file.checks import LabelFileError
from labels.file.read import read_labels
from labels.file.text import decode


def findings(document):
    """What is wrong with a document, given as JSON text or as what JSON can hold."""
    text = document if isinstance(document, str | bytes) else json.dumps(document)
    if isinstance(text, str):
        text = text.encode(errors="surrogatepass")
    found = []
    try:
        read_labels(decode(text))
    except LabelFileError as error:
        found = error.findings
    assert all(finding.isprintable() and finding.endswith(".") for finding in found)
    return found


def box(**fields):
    return {"category": "x", "is_box": True, "x1": 1, "y1": 2, "x2": 3, "y2": 4} | fields


def test_the_three_formats():
    document = {
        "a/x.v1.jpg": ["cat", {"category": "dog"}, {"category": "cow", "value": "NEGATIVE"}],
        "w.png": [{"category": "cow", "mode": "far away"}, "cat"],
        "v": [{"category": "cat", "value": "UNSURE", "mode": "UNSURE", "is_box": False}],
        "u.jpg": [],
    }
    groups, boxes, paths = read_labels(json.dumps(document))
    assert boxes == []
    assert paths == {"x.v1": "a/x.v1.jpg", "w": "w.png", "v": "v", "u": "u.jpg"}
    assert groups == {
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
        ("{'a.jpg': []}", "line 1, column 2: not valid JSON"),
        ('{"a.jpg": ["x"]', "line 1, column 16: not valid JSON"),
        (b'{\n"a\xe9.jpg": []}', "line 2, column 3: byte 0xe9 is not UTF-8 text"),
        ("{}".encode("utf-16"), "UTF-16"),
        ("{}".encode("utf-16-le"), "UTF-16"),
        ("{}".encode("utf-32-be"), "UTF-32"),
        ("path,category\na.jpg,cat", "this is not JSON: if it is CSV, add --format csv."),
        ("[" * 100_000, "nested"),
        ('{"a.jpg":' * 100_000, "nested"),
        ('{"a.jpg": [%s]}' % ("9" * 5000), "thousands of digits"),
        ([], "expected an object {image path: [annotation, ...]}, got a list"),
        ("NaN", "got NaN"),
        ('"\x1b"', "not valid JSON"),
        ({"a.jpg": "cat"}, '["a.jpg"]: expected a list of annotations, got "cat"'),
        ('{"a.jpg": -Infinity}', '["a.jpg"]: expected a list of annotations, got -Infinity'),
        ({"a.jpg": ["x", "y", {"category": 5}]}, '["a.jpg"][2].category: expected a string, got 5'),
        ('{"a.jpg": [NaN]}', '["a.jpg"][0]: expected "CATEGORY" or {"category": "CATEGORY", '),
        ({"a.jpg": [None]}, "got null"),
        ({"a.jpg": [["x"]]}, "got a list"),
        ({"a.jpg": [{}]}, '["a.jpg"][0]: expected a "category"'),
        ({"a.jpg": [""]}, '["a.jpg"][0]: the text is empty'),
        ({"a.jpg": [{"category": " \n"}]}, '["a.jpg"][0].category: the text is empty'),
        ({"a.jpg": [{"category": "x", "value": ""}]}, '["a.jpg"][0].value: the text is empty'),
        ({"a.jpg": [{"category": "x", "mode": None}]}, '["a.jpg"][0].mode: expected a string'),
        ({"a.jpg": ["x" * 301]}, "301 characters, at most 300 are allowed"),
        ({"a.jpg": [{"category": "x", "value": "é" * 301}]}, "301 characters"),
        ({"a.jpg": ["x\0"]}, "NUL"),
        ({"a.jpg": ["\ud800"]}, "surrogate"),
        (
            {"a.jpg": [{"category": "x", "value": "A", "mode": "B"}]},
            '["a.jpg"][0]: "value" and "mode" both name the mode, but differ: "A" and "B"',
        ),
        ({"a.jpg": [{"category": "x", "vlaue": "A"}]}, '["a.jpg"][0].vlaue: unknown'),
        ({"a.jpg": [{"category": "x", "\x1b": 1}]}, r'["a.jpg"][0]["\x1b"]: unknown'),
        (
            {"a.jpg": [{"category": "x", "bbox": [1, 2]}]},
            '.bbox: unknown; a box has "is_box": true',
        ),
        ({"a.jpg": [box() | {"z": 1}]}, '.z: unknown; a box has "is_box": true'),
        ({"a.jpg": [{"category": "x", "is_box": 1}]}, ".is_box: expected true or false, got 1"),
        ({"a.jpg": [{"category": "x", "is_box": True}]}, "the box has no x1 and no y1 and no x2"),
        ({"a.jpg": [{"category": "x", "x1": 1}]}, '.x1: belongs to a box, which also has "is_box"'),
        ({"a.jpg": [box(x1="1")]}, '["a.jpg"][0].x1: expected a number, got "1"'),
        ({"a.jpg": [box(x1=True)]}, ".x1: expected a number, got true"),
        ({"a.jpg": [box(y2=float("inf"))]}, ".y2: expected a finite number, got Infinity"),
        ({"a.jpg": [box(y2=float("nan"))]}, ".y2: expected a finite number, got NaN"),
        ({"a.jpg": [box(x2=10**400)]}, ".x2: expected a finite number, got 1000"),
        ({"a.jpg": [box(x1=-0.5)]}, ".x1: expected a number that is not negative, got -0.5"),
        ({"a.jpg": [box(x1=3)]}, '["a.jpg"][0]: the box has no width: x1 is 3, x2 is 3'),
        ({"a.jpg": [box(y1=4.5)]}, '["a.jpg"][0]: the box has no height: y1 is 4.5, y2 is 4'),
        ({"a.jpg": [box(), "x", box(x2=3.0)]}, '["a.jpg"][0] and [2]: the same box twice'),
        (
            {"a.jpg": ["y", "x", {"category": "x", "value": "NEGATIVE"}]},
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
        ({"a/": []}, '["a/"]: names no image'),
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


def test_limits_are_inclusive():
    long = "é" * 300
    assert findings({f"{long}.jpg": [{"category": long, "value": long}]}) == []


def test_a_byte_order_mark_is_no_error():
    assert findings(b'\xef\xbb\xbf{"a.jpg": ["x"]}') == []


texts = st.text(max_size=5) | st.sampled_from(["cat", "POSITIVE", "a.jpg", "x" * 301, "\ud800"])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
keys = st.sampled_from(["category", "value", "mode", "is_box", "x1", "y1", "x2", "y2"]) | texts
annotations = texts | st.dictionaries(keys, scalars, max_size=4) | scalars
documents = st.dictionaries(texts, st.lists(annotations, max_size=4) | scalars, max_size=4)
anything = st.recursive(scalars, lambda s: st.lists(s) | st.dictionaries(keys, s), max_leaves=20)


@given(documents | anything)
@settings(deadline=None)
def test_any_document_is_checked(document):
    findings(document)


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


def random_text(source):
    letters = source.choice(["a/.", "aé\u202e\x1b", "\0\ud800a", "catdog"])
    return "".join(source.choices(letters, k=source.choice([0, 1, 5, 400])))


def random_value(source, depth):
    """A list of annotations more often than not, with random things in it."""
    kind = source.choice(["list"] * 5 + ["dict", "text", "other"]) if depth else "text"
    if kind == "list":
        return [random_value(source, depth - 1) for _ in range(source.randrange(4))]
    if kind == "dict":
        keys = ["category", "value", "mode", "is_box", "x1", "y1", "x2", random_text(source)]
        return {key: random_value(source, depth - 1) for key in source.sample(keys, 3)}
    if kind == "text":
        return source.choice(["cat", "POSITIVE", random_text(source)])
    return source.choice([None, True, 5, -1.5, float("nan"), float("inf"), 10**1000])


def test_fuzz_10_000_files():
    """5,000 correct files with random cuts and splices, 5,000 random documents: no traceback."""
    source = random.Random(0)
    base = json.dumps(
        {
            f"d/{i}.jpg": ["cat", {"category": "é\n", "value": "NEGATIVE"}, {"category": "dog"}]
            for i in range(5)
        },
        ensure_ascii=False,
    ).encode()
    pieces = [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\ud800", b"\xff", b"1e999", b"NaN"]
    pieces += [b"null", b'"category"', b'"mode"', b"\0", b"\xef\xbb\xbf", b"-", b"9" * 5000]
    outcomes = set()
    for _ in range(5_000):
        findings({random_text(source): random_value(source, 3) for _ in range(3)})
        data = bytearray(base)
        for _ in range(source.choice([0, 1, 1, 2, 5, 20])):
            start = source.randrange(len(data) + 1)
            end = start + source.choice([0, 1, 3, 30])
            data[start:end] = source.choice([*pieces, base[:30], source.randbytes(2)])
        outcomes.add(bool(findings(bytes(data))))
    assert outcomes == {True, False}


def test_100_000_images_take_seconds():
    text = json.dumps({f"d/{n}.jpg": ["cat", {"category": "dog"}] for n in range(100_000)})
    start = time.process_time()
    groups = read_labels(text).groups
    assert sum(map(len, groups.values())) == 200_000
    assert time.process_time() - start < 5
