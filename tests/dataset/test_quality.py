"""Brightness, contrast, sharpness and colourfulness of an image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from dataset.quality import Quality, measure
from engine.decode import prepare

SIDES = st.integers(1, 700)  # smaller and larger than what sharpness is measured at


def quality(image):
    return prepare(image, with_clip_input=False).about.quality


@st.composite
def detailed(draw, least=1):
    """An image of squares of random colours, some eight to its shorter side."""
    width, height = (draw(st.integers(least, 700)) for _ in range(2))
    square = max(1, min(width, height) // 8)
    colours = np.random.default_rng(draw(st.integers(0, 999))).integers(
        0, 256, (-(-height // square), -(-width // square), 3), np.uint8
    )
    pixels = colours.repeat(square, 0).repeat(square, 1)[:height, :width]
    return Image.fromarray(pixels)


@given(detailed(least=8), st.floats(0.02, 0.2))
@settings(max_examples=25)
def test_a_blurred_copy_is_less_sharp_whatever_its_size(image, share):
    blurred = image.filter(ImageFilter.GaussianBlur(max(1, share * min(image.size))))
    assert quality(blurred).sharpness < quality(image).sharpness


@given(detailed(), st.floats(0, 0.9))
@settings(max_examples=25)
def test_a_darkened_copy_is_darker_whatever_its_size(image, factor):
    dark = image.point(lambda value: int(factor * value))
    assert quality(dark).brightness < quality(image).brightness


@given(SIDES, SIDES, st.tuples(*3 * [st.integers(0, 255)]))
@settings(max_examples=25)
def test_an_image_of_one_colour_has_its_luma_and_no_contrast(width, height, colour):
    image = Image.new("RGB", (width, height), colour)
    found = quality(image)
    assert found[:3] == (image.convert("L").getpixel((0, 0)), 0, 0)
    assert (found.colourfulness == 0) == (len(set(colour)) == 1)


@given(detailed())
@settings(max_examples=25)
def test_a_grey_copy_has_no_colourfulness(image):
    assert quality(image.convert("L").convert("RGB")).colourfulness == 0
    assert quality(image.convert("L")).colourfulness == 0


def noise(height, width):
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8))


def test_colourfulness_is_that_of_its_definition():
    red, green, blue = np.moveaxis(np.asarray(noise(40, 48), float), 2, 0)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    shift = np.hypot(red_green.mean(), yellow_blue.mean())
    found = measure(noise(40, 48))
    assert found.colourfulness == pytest.approx(spread + 0.3 * shift, rel=1e-6)
    assert all(value == np.float32(value) for value in found)


def test_brightness_contrast_and_sharpness_are_those_of_luma():
    image = noise(200, 90)
    luma = np.asarray(image.convert("L"), int)
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    laplacian -= 4 * luma[1:-1, 1:-1]
    rows = luma[1:-1:5]
    expected = rows.mean(), rows.std(), laplacian[::5].var()
    assert measure(image)[:3] == pytest.approx(expected, rel=1e-6)
    assert measure(image)[:3] == pytest.approx((luma.mean(), luma.std(), laplacian.var()), rel=0.05)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "I;16"])
def test_quality_is_that_of_the_rgb_pixels(mode):
    values = np.random.default_rng(2).integers(0, 256, (40, 30, 4), np.uint8)
    image = Image.fromarray(values).convert("RGB" if mode == "P" else "RGBA")
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    else:
        image = image.convert("RGB").convert(mode) if mode in ("CMYK", "P") else image.convert(mode)
    decoded = prepare(image)
    assert decoded.about.quality == measure(Image.fromarray(decoded.pixels))


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (65_500, 1), (1, 4000), (3, 199), (1001, 200)])
def test_an_image_of_any_shape_has_finite_numbers(size):
    found = quality(Image.effect_noise(size, 80).convert("RGB"))
    assert len(found) == len(Quality._fields) and all(0 <= v < 1e6 for v in found)
