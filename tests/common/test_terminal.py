"""Tables, sizes, durations and counts for the terminal."""

import pytest

from common.terminal import count, duration, size, table
from engine.stages import StageTime, limit, stage_table


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (12_345_678, "12.3 MB"),
        (999_949_999, "999.9 MB"),
        (999_999_999, "1.0 GB"),
        (4.2e9, "4.2 GB"),
        (5.55e15, "5,550.0 TB"),
    ],
)
def test_size(number, text):
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.7, "60 s"),
        (99.4, "99 s"),
        (100, "1 min 40 s"),
        (3599.6, "60 min 0 s"),
        (18_720, "5 h 12 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_table_is_aligned():
    assert table(("name", "number"), [("a", "1"), ("long name", "12,345")]).splitlines() == [
        "name       number",
        "a               1",
        "long name  12,345",
    ]


def test_table_with_two_text_columns():
    rows = [("cat", "POSITIVE", "1"), ("horse", "NEW", "1,000")]
    assert table(("category", "mode", "labels"), rows, text_columns=2).splitlines() == [
        "category  mode      labels",
        "cat       POSITIVE       1",
        "horse     NEW        1,000",
    ]


def test_count():
    assert [count(number, "label") for number in (0, 1, 1234)] == [
        "0 labels",
        "1 label",
        "1,234 labels",
    ]


def test_stage_table():
    times = [StageTime("fetch", 1200, 6.0), StageTime("register", 1200, 0.0)]
    assert [line.split() for line in stage_table(times, 8.0).splitlines()] == [
        ["stage", "images", "seconds", "busy", "images/s", "busy"],
        ["fetch", "1,200", "6.0", "200.0", "75%"],
        ["register", "1,200", "0.0", "-", "0%"],
    ]


@pytest.mark.parametrize(
    ("busy", "begin"),
    [
        ({"fetch": 9, "ResNet": 2}, "fetch was busy 90% of the time: the network or the bucket"),
        ({"fetch": 2, "ResNet": 9}, "ResNet was busy 90% of the time: the model limits"),
        ({"decode": 8}, "decode was busy 80% of the time: decoding limits: try --decode_workers 8"),
        ({"thumbnails": 9}, "thumbnails was busy 90% of the time: uploading thumbnails"),
    ],
)
def test_the_stage_that_limits_is_named(busy, begin):
    times = [StageTime(name, 10, seconds) for name, seconds in busy.items()]
    assert limit(times, 10, decode_workers=4).startswith(begin)


@pytest.mark.parametrize("busy", [{"fetch": 6.9}, {"upload": 9.5, "fetch": 8}])
def test_no_advice_where_nothing_limits(busy):
    assert limit([StageTime(name, 10, s) for name, s in busy.items()], 10, 4) is None
