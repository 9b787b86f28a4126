"""What bounds and measures the stages, and what is said of them."""

import pytest

from engine.stages import StageTime, limiting_stage


def test_rate_and_busy_share():
    stage = StageTime("fetch", 1200, 6.0)
    assert (stage.rate, stage.busy_share(8.0), stage.busy_share(5.0)) == (200, 0.75, 1)
    assert StageTime("fetch", 1200, 0.0).rate == 0


@pytest.mark.parametrize(
    ("busy", "stage", "advice"),
    [
        ({"fetch": 9, "models": 2}, "fetch", "Run closer to the bucket."),
        ({"fetch": 2, "models": 9}, "models", "A GPU (or a faster one), or several with"),
        ({"decode": 8}, "decode", "Try --decode_workers 8 on a machine"),
        ({"thumbnails": 9}, "thumbnails", "Run closer to the index bucket."),
    ],
)
def test_the_limiting_stage_is_named(busy, stage, advice):
    times = [StageTime(name, 10, seconds) for name, seconds in busy.items()]
    found = limiting_stage(times, 10, decode_workers=4)
    assert found.stage == stage and found.advice.startswith(advice)


@pytest.mark.parametrize("busy", [{}, {"fetch": 6.9}])
def test_no_advice_without_a_limiting_stage(busy):
    assert limiting_stage([StageTime(name, 10, s) for name, s in busy.items()], 10, 4) is None
