"""Label files whose mistake has one cause: the message names that cause and what to do."""

import json

import pytest

from labels.file.checks import Labels
from labels.file.checks import LabelFileError
from labels.file.checks import nearly_built_in as nearly
from labels.file.read import read_labels
from labels.images import KnownImages, inversion

CATEGORIES_TO_IMAGES = (
    'the file gives "cat" the label "t/a.jpg": it maps categories to images. Write each image '
    "first, and then its categories."
)
NEARLY_POSITIVE = (
    'the mode "positive" of 2 labels is nearly POSITIVE, and Forager would store it as another '
    "mode: write POSITIVE, or add --allow_mode positive if it is right."
)


def findings(document, file_format="forager", **options):
    text = document if isinstance(document, str) else json.dumps(document)
    try:
        read_labels(text, file_format, **options)
    except LabelFileError as error:
        return error.findings
    return []


@pytest.mark.parametrize(
    ("text", "place", "cause"),
    [
        ('{"a.jpg": ["x",]}', "column 15", "there is a comma before the closing ]: delete it"),
        ('{"a.jpg": ["x"] ,\n}', "column 17", "there is a comma before the closing }: delete it"),
        (
            '{"a.jpg": [{"category": "x",}]}',
            "column 28",
            "there is a comma before the closing }: delete it",
        ),
        ("{'a.jpg': ['x']}", "column 2", "strings are written in double quotes"),
        ("{\"a.jpg\": ['x']}", "column 12", "strings are written in double quotes"),
        (
            '{"a.jpg": ["x"]',
            "column 16",
            "the file ends here, before its last bracket: is it complete?",
        ),
        ('{"a.jpg": ["x]}', "column 12", "the string that begins here has no end"),
        ('{"a.jpg": [x]}', "column 12", "a value is expected here"),
        ('{a.jpg: ["x"]}', "column 2", "a key in double quotes is expected here"),
        ('{"a.jpg" ["x"]}', "column 10", "a colon is expected here"),
        (
            '{"a.jpg": ["x" "y"]}',
            "column 16",
            "a comma or a closing bracket is expected here",
        ),
        ('{"a.jpg": []} {}', "column 15", "something follows the end of the document"),
    ],
)
def test_text_that_is_no_json(text, place, cause):
    assert findings(text) == [f"line 1, {place}: not valid JSON ({cause})."]


def test_a_comma_too_many_in_a_coco_file():
    assert findings('{"images": [{"id": 1, "file_name": "a.jpg"},]}', "coco") == [
        "line 1, column 44: not valid JSON (there is a comma before the closing ]: delete it)."
    ]


def test_a_csv_file_given_as_json_and_the_reverse():
    assert findings("path,category\na.jpg,cat\n") == [
        "this is not JSON: if it is CSV, add --format csv."
    ]
    assert findings({"a.jpg": ["cat"]}, "csv") == [
        "this is JSON, not CSV: use --format forager or --format coco."
    ]


@pytest.mark.parametrize(
    ("document", "file_format"),
    [
        ({"cat": ["t/a.jpg", "b.JPG"], "dog": [{"category": "c.png"}]}, "forager"),
        ("cat,t/a.jpg\ncat,b.jpg\n", "csv"),
    ],
)
def test_a_file_that_maps_categories_to_images(document, file_format):
    assert findings(document, file_format) == [CATEGORIES_TO_IMAGES]


@pytest.mark.parametrize(
    "document",
    [{"a.jpg": ["x.jpg"]}, {"a": ["cat"]}, {"a": ["x.jpg", "cat"]}, {"a": []}],
)
def test_files_that_may_be_meant_as_they_are(document):
    assert findings(document) == []


def test_categories_that_are_images_of_the_dataset():
    groups = {("t/a", "POSITIVE"): ["cat"], ("b.v1", "POSITIVE"): ["cat", "dog"]}
    labels = Labels(groups, [], {"cat": "cat", "dog": "dog"})
    nothing = labels._replace(groups={})
    said = CATEGORIES_TO_IMAGES.replace("t/a.jpg", "t/a")
    known = KnownImages({"a": 0, "c": 1}, {"b.v1": 2})
    assert inversion(labels, nothing, known) == said
    assert inversion(labels, nothing, known._replace(val={})) == ""
    assert inversion(labels, labels, known) == ""


def test_a_mode_that_is_nearly_a_built_in_one_is_one_finding():
    nearly_positive = {"category": "x", "value": "positive"}
    document = {"a.jpg": [nearly_positive], "b.jpg": [nearly_positive]}
    assert findings(document) == [NEARLY_POSITIVE]
    assert findings("a.jpg,x,positive\nb.jpg,x,positive\n", "csv") == [NEARLY_POSITIVE]
    assert findings(document, allowed_modes=("positive",)) == []
    assert findings(document, allowed_modes=("Positive",)) == [NEARLY_POSITIVE]


def test_the_mode_of_a_box_is_checked_and_quoted_for_the_shell():
    box = {"category": "x", "mode": "hard negative", "is_box": True}
    corners = {"x1": 1, "y1": 1, "x2": 2, "y2": 2}
    (said,) = findings({"a.jpg": [box | corners]})
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
    assert nearly(mode) == meant
