"""CUDA graphs, imitated on the CPU: what is captured when, and that no number depends on it."""

import pytest
import torch

from models.device import graphs
from models.device.graphs import AFTER, Graphs, Inputs
from tests.models.helpers import Capture


def batch(value, n=2, side=3):
    return Inputs(torch.full((n, side, side, 3), value, dtype=torch.uint8), None, None, None, None)


def compute(inputs):
    means = inputs.pixels.float().mean((1, 2, 3))
    return means, means.long()


def values(made, number, count):
    """What batches of one shape give, each with pixels of its own."""
    return [float(made.run(batch(number + i))[0][0]) for i in range(count)]


def test_a_shape_that_recurs_is_captured_once_and_replayed():
    capture = Capture()
    made = Graphs(compute, capture, lambda inputs: True)
    assert values(made, 0, AFTER) == list(range(AFTER))
    assert capture.replays == 1  # to compare it with the plain launch
    assert values(made, 50, 9) == list(range(50, 59)) and capture.replays == 10
    assert float(made.run(batch(3, side=4))[0][0]) == 3 and capture.replays == 10


def test_graphs_are_limited_in_number_and_by_memory(monkeypatch):
    monkeypatch.setattr(graphs, "MOST", 2)
    capture, asked = Capture(), []

    def fits(inputs):
        asked.append(len(inputs.pixels))
        return len(asked) > 1

    made = Graphs(compute, capture, fits)
    for n in (1, 2, 3, 4):
        for _ in range(2 * AFTER):
            made.run(batch(1, n))
    assert asked == [1, 1, 2] and made.refusal is None
    before = capture.replays
    for n in (3, 4):
        made.run(batch(1, n))
    assert capture.replays == before


@pytest.mark.parametrize(
    ("capture", "said"),
    [
        (Capture(fails=True), "torch says: operation not permitted when stream is capturing"),
        (Capture(adds=0.01), "one gave other numbers"),
    ],
)
def test_a_graph_that_fails_or_is_wrong_is_never_used(capture, said):
    made = Graphs(compute, capture, lambda inputs: True)
    assert values(made, 0, 3 * AFTER) == list(range(3 * AFTER))
    assert made.refusal == said and capture.replays <= 1
