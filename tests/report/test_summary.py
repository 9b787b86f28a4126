"""The closing lines of a run, as a person reads them."""

import pytest

from engine.stages import StageTime
from report.run import Report, RunOutcome, Step, StepName, summarize

MESSAGE = (
    "birds: 1,000 images (900 training, 100 validation), 3 failed, 700 reused, 297 embedded now"
)


def finished(steps, **busy):
    """The report of a run with these steps, (name, seconds, images), and busy stages."""
    report = Report({"decode_workers": 4})
    report.steps = [Step(StepName(name), *numbers) for name, *numbers in steps]
    report.stages = [StageTime(name, 297, seconds) for name, seconds in busy.items()]
    report.seconds = sum(step.seconds for step in report.steps)
    report.outcome, report.message = RunOutcome.REGISTERED, MESSAGE
    return report


def test_everything_that_a_run_says_at_its_end():
    steps = [("checks", 5.0), ("reuse", 2.0, 700), ("loading the models", 3.0)]
    steps += [("embedding", 100.0, 297), ("upload", 4.0), ("registration", 6.0)]
    report = finished(steps, fetch=10, decode=30, models=97, thumbnails=1)
    report.failures = [
        {"images": 2, "reason": "the file is empty", "example": "a"},
        {"images": 1, "reason": "not an image", "example": "b"},
    ]
    assert summarize(report).splitlines() == [
        "step                      time  images  images/s",
        "checks                   5.0 s",
        "reuse                    2.0 s     700     350.0",
        "loading the models       3.0 s",
        "embedding           1 min 40 s     297       3.0",
        "upload                   4.0 s",
        "registration             6.0 s",
        "in all               2 min 0 s",
        "Busy while embedding: fetch 10%, decode 30%, models 97%, thumbnails 1% "
        "(100%: at work all the time).",
        "Limited by: models. A GPU (or a faster one), or several with --engine ray, would help.",
        "Failed: 3 images.",
        "      2: the file is empty",
        "      1: not an image",
        MESSAGE,
    ]


NO_SINGLE = "no single stage; each waited for others part of the time."


@pytest.mark.parametrize(
    ("busy", "said"),
    [
        ({"fetch": 9, "models": 2}, "fetch. Run closer to the bucket."),
        (
            {"fetch": 2, "models": 9},
            "models. A GPU (or a faster one), or several with --engine",
        ),
        ({"decode": 7}, "decode. Try --decode_workers 8 on a machine with more cores."),
        ({"thumbnails": 9}, "thumbnails. Run closer to the index bucket."),
        *((busy, NO_SINGLE) for busy in ({}, {"fetch": 6.9}, {"models": 4, "fetch": 4})),
    ],
)
def test_what_limited_the_embedding(busy, said):
    steps = [("checks", 1.0), ("embedding", 10.0, 10)]
    assert f"\nLimited by: {said}" in summarize(finished(steps, **busy))


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("checks", "This time depends little on the number of images that"),
        ("upload", "Run closer to the index"),
    ],
)
def test_another_step_took_longest(step, said):
    report = finished([(step, 60.0), ("embedding", 9.0, 10)], models=9)
    assert f"\nLongest step: {step}. {said}" in summarize(report)
