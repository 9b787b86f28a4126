"""Names of datasets, images and gs:// paths."""

import posixpath
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.names import GsPath, dataset_name_error, identifier, parse_gs_path
from common.program import ROOT
from common.terminal import printable


@pytest.mark.parametrize(
    ("text", "bucket", "prefix"),
    [
        ("gs://bucket/train", "bucket", "train/"),
        ("gs://bucket/train/", "bucket", "train/"),
        ("gs://bucket/train//", "bucket", "train/"),
        ("gs://bucket/a/b c/d", "bucket", "a/b c/d/"),
        ("gs://bucket", "bucket", ""),
        ("gs://bucket/", "bucket", ""),
        ("gs://a.b_c-1/x", "a.b_c-1", "x/"),
        ("gs://bucket/été #1?", "bucket", "été #1?/"),
    ],
)
def test_path_ends_with_one_slash(text, bucket, prefix):
    path = parse_gs_path(text)
    assert path == GsPath(bucket, prefix)
    assert parse_gs_path(str(path)) == path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a Cloud Storage path: write gs://BUCKET/DIRECTORY."),
        ("b/train", "b/train is not a Cloud Storage path: write gs://BUCKET/DIRECTORY."),
        ("bucket/train", "bucket/train is not a Cloud Storage path: write gs://bucket/train."),
        ("https://storage.googleapis.com/bucket/train", ": write gs://bucket/train."),
        (
            "https://console.cloud.google.com/storage/browser/bucket/a/b;tab=x?y",
            ": write gs://bucket/a/b.",
        ),
        ("gs://bucket/train/*.jpg", ": write gs://bucket/train."),
        (
            "s3://bucket/train",
            "such as with `gcloud storage rsync --recursive s3://bucket/train gs:",
        ),
        ("./train", "./train is not on Cloud Storage, where Forager reads images: copy it there"),
        ("tests", "tests is not on Cloud Storage, where Forager reads images: copy it there"),
        ("GS://bucket/train", "is not a Cloud Storage path"),
        ("gs:///train", "names no bucket"),
        ("gs://", "names no bucket"),
        ("gs://Bucket/train", "names no bucket"),
        ("gs://b/train", "names no bucket"),
        ("gs://bucket\n/train", "gs://bucket\\n/train names no bucket"),
        ("gs://bucket/\udc80", "is not valid UTF-8"),
        ("gs://bucket/" + "d" * 600, "is longer than 600 characters"),
    ],
)
def test_path_refused(text, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=r"\.$") as error:
        parse_gs_path(text)
    assert message in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        *((name, True) for name in ("a", "A-b_9", "-", "x" * 50)),
        *((name, False) for name in ("", "a b", "x" * 51, "é", "a/b", "a\n", "a.b", "٣")),
    ],
)
def test_names_of_datasets(name, valid):
    error = dataset_name_error(name)
    assert (error is None) == valid
    assert valid or ("1 to 50 letters, digits, dashes" in error and error.isprintable())


def test_a_path_in_the_place_of_the_name():
    expected = "gs://b/t stands where the dataset name is expected: write NAME first."
    assert dataset_name_error("gs://b/t") == expected


@given(st.text() | st.text("aé./ #?%"))
def test_identifier_is_the_stem_that_the_server_takes(name):
    assert identifier(name) == posixpath.splitext(name.rpartition("/")[2])[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é name", "plain é name"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\udc80", r"\udc80"),
    ],
)
def test_printable_escapes(text, expected):
    assert printable(text) == expected


@given(st.text(), st.integers(10, 200))
def test_printable_is_printable_and_short(text, limit):
    safe = printable(text, limit)
    assert safe.isprintable()
    assert len(safe) <= limit


@pytest.mark.parametrize("length", [113, 1_000_000])
def test_printable_keeps_both_ends_of_a_long_name(length):
    safe = printable("begin" + "x" * length + "end.jpg")
    assert re.fullmatch(r"beginx+\.\.\.x+end\.jpg", safe) and 117 <= len(safe) <= 120
