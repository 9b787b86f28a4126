"""Which images become a batch, and when: by a clock that the tests set."""

import pytest

from bench.schedule import Device, coco_sizes, simulate
from engine.batches import Groups


def groups(**options):
    return Groups(lambda item: 4, **options)


def test_a_full_group_is_ready_at_once():
    waiting = groups(gather_s=10, quiet_s=10)
    for number in range(5):
        waiting.add("a", number, now=1.0)
    assert waiting.take(1.0) == [0, 1, 2, 3]
    assert waiting.take(1.0) == [] and waiting.ready_at() == 11.0


def test_a_group_waits_for_more_images_and_no_longer():
    waiting = groups(gather_s=3, quiet_s=100)
    waiting.add("a", 1, now=0.0)
    waiting.add("b", 2, now=2.0)
    assert waiting.take(2.9) == []
    assert waiting.take(3.0) == [1]
    assert waiting.take(3.0) == [] and waiting.ready_at() == 5.0


def test_nothing_waits_once_no_more_images_come():
    waiting = groups(gather_s=3, quiet_s=1)
    waiting.add("a", 1, now=0.0)
    waiting.add("b", 2, now=0.5)
    assert waiting.take(1.4) == []
    assert waiting.ready_at() == 1.5
    assert waiting.take(1.5) == [1] and waiting.take(1.5) == [2]
    assert not waiting and waiting.ready_at() is None


def test_the_fullest_group_goes_first_then_the_overdue_one():
    waiting = groups(max_wait_s=5)
    waiting.add("a", "rare", now=0.0)
    for number in range(3):
        waiting.add("b", number, now=1.0)
    assert waiting.take(1.0) == [0, 1, 2]
    waiting.add("b", 3, now=6.0)
    waiting.add("b", 4, now=6.0)
    assert waiting.take(6.0) == ["rare"]


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (3, 2), (7, 4)])
def test_sizes_of_batches_are_few(count, expected):
    waiting = groups(few_sizes=True)
    for number in range(count):
        waiting.add("a", number, now=0.0)
    assert len(waiting.take(0.0)) == expected


def test_threads_share_a_group_that_waits_alone():
    waiting = groups()
    for number in range(4):
        waiting.add("a", number, now=0.0)
    assert waiting.take(0.0, sharing=2) == [0, 1]


@pytest.mark.parametrize(("rate", "share"), [(4000, 0.85), (450, 0.95)])
def test_batches_of_coco_are_full_enough(rate, share):
    """As many images as COCO train2017 has: the more there are, the less new shapes cost."""
    figures = simulate(coco_sizes(118_287), Device(rate), arrivals=1e9)
    assert figures["device busy"] >= share
    assert figures["mean batch"] >= 24
    assert figures["padding"] <= 0.08


def test_ten_images_do_not_wait_for_others():
    figures = simulate(coco_sizes(10), Device(4000, new_shape_s=0.0), arrivals=1000)
    assert figures["longest wait, s"] < 0.1
