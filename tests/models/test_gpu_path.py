"""What a GPU does with batches, computed on the CPU: canvases, memory that runs out, overflow."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from dataset.arrays import DIMENSIONS
from models import devices
from models.runner import Runner
from tests.models.helpers import as_rows, assert_close, embed, embed_photographs

CPU = torch.device("cpu")
GREY = [np.full((32, 32, 3), value, np.uint8) for value in (0, 90, 180)]


class LimitedRunner(Runner):
    """A runner whose memory holds `largest` images of a batch; `sizes` has what it was given."""

    def __init__(self, models, largest=100):
        super().__init__(models, CPU, clip_batch_size=128)
        self.largest, self.sizes = largest, []

    def launch(self, images, clip_inputs):
        self.sizes.append(len(images))
        if len(images) > self.largest:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().launch(images, clip_inputs)


@pytest.fixture
def gpu(embedder, monkeypatch):
    """An embedder that takes the ways of a GPU and computes on the CPU."""
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    emulated = copy.copy(embedder)
    emulated._on_gpu, emulated._gpu_pixels = True, 100_000_000
    emulated._runner = LimitedRunner(embedder._models)
    return emulated


@pytest.fixture(scope="module")
def exact(embedder):
    """What an embedder on the CPU makes of GREY."""
    return embed(embedder, GREY)


@pytest.mark.parametrize(
    "order", [slice(None, None, -4), pytest.param(slice(0, None, 4), marks=pytest.mark.soak)]
)
def test_photographs_of_all_sizes_in_one_batch(order, gpu, photographs, expected, monkeypatch):
    """Photographs on the same canvas, whatever their size, with and without CLIP's input."""
    monkeypatch.setattr(gpu._runner, "canvas", lambda height, width: (704, 832))
    images = [photograph.pixels for photograph in photographs[order]]
    inputs = [p.clip_input if i % 3 else None for i, p in enumerate(photographs[order])]
    assert_close(as_rows(gpu.start(images, inputs)()), expected, order, 1e-5)


def test_batches_by_canvas(gpu, photographs, expected):
    order = slice(1, None, 2)
    assert_close(embed_photographs(gpu, photographs[order]), expected, order, 1e-5)


def test_many_images_of_one_size_need_no_canvas(gpu, embedder, monkeypatch):
    images = [np.full((40, 50, 3), value, np.uint8) for value in range(0, 240, 30)]
    shapes = []
    resnet = gpu._models.resnet

    def noted(pixels, sizes):
        shapes.append((tuple(pixels.shape), sizes))
        return resnet(pixels, sizes)

    models = replace(gpu._models, resnet=noted)
    monkeypatch.setattr(gpu._runner, "_models", models)
    gpu.start(images, [None] * 8)()
    gpu.start(images[:2], [None] * 2)()
    assert shapes[0] == ((8, 40, 50, 3), None)
    assert shapes[1][0] == (2, 64, 64, 3) and shapes[1][1].tolist() == [[40, 50]] * 2


def test_canvases_group_images(gpu):
    assert gpu.group(480, 640) == gpu.group(449, 577) == (512, 640)
    assert gpu.group(1, 64) == (64, 64)
    assert gpu.group(480, 640) != gpu.group(640, 480)


def test_batch_size_follows_memory(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "_gpu_pixels", 10_000_000)
    assert gpu.batch_size(480, 640) == 10_000_000 // (512 * 640)
    assert gpu.batch_size(5000, 5000) == 1
    monkeypatch.setattr(gpu, "_resnet_batch_size", 8)
    assert gpu.batch_size(480, 640) == 8
    monkeypatch.setattr(gpu, "_gpu_pixels", 10**9)
    monkeypatch.setattr(gpu, "_resnet_batch_size", None)
    assert gpu.batch_size(480, 640) == devices.BATCH_PIXELS // (512 * 640) == 32


@pytest.mark.parametrize("largest", [0, 1, 2])
def test_out_of_memory_splits_this_batch_and_later_ones_then_takes_the_cpu(largest, gpu, exact):
    gpu._runner.largest = largest
    gpu._gpu_pixels = 3 * 64 * 64
    rows = embed(gpu, GREY)
    np.testing.assert_array_equal(rows["classes"], exact["classes"])
    assert_close(rows, exact, tolerance=1e-5)
    assert gpu._runner.sizes[0] == 3 and (gpu._cpu_models is not None) == (largest == 0)
    said = ["Computed on the CPU, because the memory of cpu is too small: 3 images."]
    assert gpu.exceptions() == (said if largest == 0 else [])
    gpu._runner.sizes.clear()
    embed(gpu, GREY)
    assert max(gpu._runner.sizes) <= max(1, largest)  # later batches are no larger


def test_other_errors_of_a_gpu_are_not_hidden(gpu, monkeypatch):
    def broken(images, clip_inputs):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(gpu._runner, "launch", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        gpu.start([np.zeros((8, 8, 3), np.uint8)], [None])


def test_overflow_in_half_precision_is_computed_again_in_float32(gpu, exact, monkeypatch):
    """Two of three images overflow: those two are computed again, and counted."""
    rows = [exact[name].copy() for name in (*DIMENSIONS, "classes")]
    rows[0][1], rows[2][2] = np.nan, np.inf
    monkeypatch.setattr(gpu, "dtype", torch.float16)
    monkeypatch.setattr(gpu, "precision", "float16")
    monkeypatch.setattr(gpu._runner, "launch", lambda images, inputs: lambda: rows)
    assert_close(as_rows(gpu.start(GREY, [None] * 3)()), exact)
    assert gpu.exceptions() == [
        "Computed again in float32, after an overflow in float16: 2 images."
    ]


def test_float32_is_never_computed_twice(gpu, exact, monkeypatch):
    rows = [exact[name][:1].copy() for name in (*DIMENSIONS, "classes")]
    rows[0][0] = np.nan
    monkeypatch.setattr(gpu._runner, "launch", lambda images, inputs: lambda: rows)
    (embedding,) = gpu.start(GREY[:1], [None])()
    assert np.isnan(embedding.vectors[0]).all()
