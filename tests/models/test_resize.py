"""CLIP's input made on the device against Pillow's pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from engine.decode import TALL, clip_input, prepare
from models.resize import bicubic, clip_inputs, weights_for

CPU = torch.device("cpu")
SIZES = [
    *((640, 480), (480, 640), (224, 224), (1920, 1080), (333, 224), (224, 300), (375, 500)),
    *((97, 131), (800, 120), (7, 3), (1, 1), (500, 1), (30_000, 20), (1000, 2000), (100, 200)),
]


@pytest.mark.parametrize("size", SIZES)
def test_the_pixels_are_pillows(size):
    width, height = size
    images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    ours = clip_inputs(torch.from_numpy(images), weights_for(height, width, CPU)).numpy()
    assert ours.dtype == np.uint8
    for image, mine in zip(images, ours, strict=True):
        difference = abs(clip_input(Image.fromarray(image)).astype(int) - mine)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 2e-4  # of noise, which is the hardest


def test_weights_sum_to_one_and_are_sparse():
    across, down = weights_for(480, 640, CPU)
    assert across.shape == (224, 640) and down.shape == (224, 480)
    for weights in (across, down):
        assert torch.allclose(weights.sum(1), torch.ones(224), atol=1e-5)
        assert (weights != 0).sum(1).max() <= 10


def test_bicubic_interpolates():
    assert bicubic(np.array([0.0, 1.0, -1.0, 2.0, 3.0])).tolist() == [1, 0, 0, 0, 0]


def test_only_tall_images_have_their_clip_input_from_pillow():
    for width, height, with_input in ((100, 100 * TALL, False), (100, 100 * TALL + 1, True)):
        prepared = prepare(Image.new("RGB", (width, height)), with_clip_input=False)
        assert (prepared.clip_input is not None) is with_input
        assert prepare(Image.new("RGB", (width, height))).clip_input is not None
