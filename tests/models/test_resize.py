"""CLIP's input made on the device against Pillow's pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from engine.decode import TALL, clip_input, prepare
from models.clip import crop_table, resized_for_clip

SIZES = [
    *((640, 480), (480, 640), (224, 224), (1920, 1080), (333, 224), (224, 300), (375, 500)),
    *((97, 131), (800, 120), (7, 3), (1, 1), (500, 1), (30_000, 20), (1000, 2000), (100, 200)),
]


def check(images, canvas):
    pixels = np.random.default_rng(1).integers(0, 256, (len(images), *canvas, 3), np.uint8)
    for place, image in zip(pixels, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    crops = torch.from_numpy(crop_table([image.shape[:2] for image in images]))
    ours = resized_for_clip(torch.from_numpy(pixels), crops).numpy()
    assert ours.dtype == np.uint8
    for image, mine in zip(images, ours, strict=True):
        difference = abs(clip_input(Image.fromarray(image)).astype(int) - mine)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 2e-4  # of noise, which is the hardest


def noise(*sizes):
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (height, width, 3), np.uint8) for width, height in sizes]


@pytest.mark.parametrize("size", SIZES)
def test_the_pixels_are_pillows(size):
    check(noise(size, size), (size[1], size[0]))


def test_images_of_several_sizes_share_a_canvas():
    check(noise((640, 480), (480, 640), (224, 224), (97, 131), (3, 7), (1, 1)), (704, 640))


def test_only_tall_images_have_their_clip_input_from_pillow():
    for width, height, with_input in ((100, 100 * TALL, False), (100, 100 * TALL + 1, True)):
        prepared = prepare(Image.new("RGB", (width, height)), with_clip_input=False)
        assert (prepared.clip_input is not None) is with_input
        assert prepare(Image.new("RGB", (width, height))).clip_input is not None
