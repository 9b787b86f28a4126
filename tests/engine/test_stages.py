"""What bounds and measures the stages, and what is said of them."""

import pytest

from engine.stages import StageTime, bottleneck, stage_table


def test_stage_table():
    times = [StageTime("fetch", 1200, 6.0), StageTime("register", 1200, 0.0)]
    assert [line.split() for line in stage_table(times, 8.0).splitlines()] == [
        ["stage", "images", "seconds", "busy", "images/s", "busy"],
        ["fetch", "1,200", "6.0", "200.0", "75%"],
        ["register", "1,200", "0.0", "-", "0%"],
    ]


@pytest.mark.parametrize(
    ("busy", "said"),
    [
        ({"fetch": 9, "models": 2}, "Bottleneck: fetch (90% busy). Run closer to the bucket."),
        ({"fetch": 2, "models": 9}, "Bottleneck: models (90% busy). A faster GPU, or --engine ray"),
        ({"decode": 8}, "Bottleneck: decode (80% busy). Try --decode_workers 8 on a machine"),
        ({"thumbnails": 9}, "Bottleneck: thumbnails (90% busy). Run closer to the index bucket."),
    ],
)
def test_the_bottleneck_is_named(busy, said):
    times = [StageTime(name, 10, seconds) for name, seconds in busy.items()]
    assert bottleneck(times, 10, decode_workers=4).startswith(said)


@pytest.mark.parametrize("busy", [{"fetch": 6.9}, {"upload": 9.5, "fetch": 8}])
def test_no_advice_without_a_bottleneck(busy):
    assert bottleneck([StageTime(name, 10, s) for name, s in busy.items()], 10, 4) is None
