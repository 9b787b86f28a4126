"""CUDA graphs, imitated on the CPU: what is captured when, and that no number depends on it."""

import copy

import numpy as np
import pytest
import torch

from dataset.arrays import DIMENSIONS
from models import graphs
from models.graphs import AFTER, Graphs, Inputs
from models.runner import Runner
from tests.models.helpers import embed


class Capture:
    """As GpuCapture: what is captured is computed by `replay` only, into the same outputs."""

    def __init__(self, *, fails=False, adds=0.0):
        self.fails, self.adds, self.replays = fails, adds, 0

    def __call__(self, compute):
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        outputs = tuple(torch.full_like(tensor, 7) for tensor in compute())

        def replay():
            self.replays += 1
            for output, tensor in zip(outputs, compute(), strict=True):
                output.copy_(tensor + self.adds if tensor.is_floating_point() else tensor)

        return replay, outputs


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


class Replaying(Runner):
    """A runner that captures every shape at once; `short` makes it run out of memory once."""

    short = False

    def __init__(self, models):
        super().__init__(models, torch.device("cpu"), clip_batch_size=128)
        self.capture = Capture()
        self.graphs = Graphs(self._compute, self.capture, lambda inputs: True)

    def launch(self, images, clip_inputs):
        if self.short:
            self.short = False
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().launch(images, clip_inputs)

    def _copied_back(self, tensor):
        return tensor.clone()


@pytest.fixture
def gpu(embedder, monkeypatch):
    monkeypatch.setattr(graphs, "AFTER", 1)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    emulated = copy.copy(embedder)
    emulated._on_gpu, emulated._gpu_pixels = True, 100_000_000
    emulated._runner = Replaying(embedder._models)
    return emulated


def test_embeddings_do_not_depend_on_graphs(gpu, embedder):
    """Two batches of the same shapes: canvases, and one of three inputs of CLIP made elsewhere."""
    random = np.random.default_rng(0)
    for _ in range(2):
        images = [random.integers(0, 256, (40 + i, 50, 3), np.uint8) for i in range(3)]
        inputs = [None, random.integers(0, 256, (224, 224, 3), np.uint8), None]
        rows, exact = embed(gpu, images, inputs), embed(embedder, images, inputs)
        for name in DIMENSIONS:
            assert abs(rows[name] - exact[name]).max() < 1e-5
    assert gpu._runner.capture.replays == 2 and gpu.exceptions() == []


def test_graphs_give_their_memory_back_before_batches_are_split(gpu, embedder):
    images = [np.full((32, 32, 3), value, np.uint8) for value in (10, 20, 30)]
    embed(gpu, images)
    gpu._runner.short = True
    rows, exact = embed(gpu, images), embed(embedder, images)
    for name in DIMENSIONS:
        assert abs(rows[name] - exact[name]).max() < 1e-5
    assert gpu._gpu_pixels == 100_000_000
    said = "CUDA graphs were given up, because the memory of the GPU is short."
    assert gpu.exceptions() == [said]
