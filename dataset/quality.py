"""Four numbers that tell dark, flat, blurred and grey images apart: columns of the manifest.

They are measured on the RGB pixels of the thumbnail, before these become a JPEG file: up to 200
pixels high. All sums are of integers, so they depend on nothing but the pixels.
"""

from __future__ import annotations

import math
from operator import mul
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# Sharpness is measured at the height of a thumbnail, so most images need not be scaled again. One
# that is smaller is enlarged, as it shows less detail of the same subject; a very wide one is
# squeezed.
SHARPNESS_HEIGHT = 200  # pixels
SHARPNESS_WIDTHS = 3, 1000  # pixels, at least and at most
EVERY_ROW = 3  # row counts for sharpness, which takes half the time
COLOUR_SIDE = 64  # pixels: colourfulness is that of a sample of the pixels, 2% from that of all
LEVELS = range(256)
SQUARES = [level**2 for level in LEVELS]


class Quality(NamedTuple):
    """What is measured of one image: numbers that float32 holds exactly, 0 or more."""

    brightness: float  # mean luma, to 255; luma is ITU-R 601's: 0.299 R + 0.587 G + 0.114 B
    contrast: float  # standard deviation of luma, to 127.5; 0 if all pixels are equally bright
    sharpness: float  # variance of the Laplacian of luma at SHARPNESS_HEIGHT; low if blurred
    colourfulness: float  # of the sample; 0 if grey, 15 if slight, above 80 if extreme

    @classmethod
    def known(cls, *values: float | None) -> Quality | None:
        """These four numbers; None if they are not known."""
        numbers = [value for value in values if value is not None]
        return cls(*numbers) if len(numbers) == len(cls._fields) else None


COLUMNS = ", ".join(Quality._fields)
UNKNOWN = dict.fromkeys(Quality._fields)


def measure(small: Image.Image) -> Quality:
    """The quality of an image, by its RGB pixels up to SHARPNESS_HEIGHT high."""
    luma = small.convert("L")
    counts = luma.histogram()
    brightness, spread = _mean_and_variance(
        luma.width * luma.height, sum(map(mul, counts, LEVELS)), sum(map(mul, counts, SQUARES))
    )
    measured = brightness, math.sqrt(spread), _sharpness(luma), _colourfulness(small)
    return Quality(*np.array(measured, np.float32).tolist())


def _sharpness(luma: Image.Image) -> float:
    """The variance of the Laplacian: the four neighbours of a pixel less four times itself."""
    least, most = SHARPNESS_WIDTHS
    width = min(max(least, round(luma.width * SHARPNESS_HEIGHT / luma.height)), most)
    if luma.size != (size := (width, SHARPNESS_HEIGHT)):
        luma = luma.resize(size)  # bicubic
    pixels = np.asarray(luma).astype(np.int16)
    row = pixels[1:-1:EVERY_ROW]
    laplacian = pixels[:-2:EVERY_ROW, 1:-1] + pixels[2::EVERY_ROW, 1:-1]
    laplacian += row[:, :-2]
    laplacian += row[:, 2:]
    laplacian -= 4 * row[:, 1:-1]
    return _mean_and_variance_of(laplacian)[1]


def _colourfulness(image: Image.Image) -> float:
    """M3 of Hasler and Suesstrunk, "Measuring colourfulness in natural images" (2003)."""
    size = min(image.width, COLOUR_SIDE), min(image.height, COLOUR_SIDE)
    pixels = np.asarray(image.resize(size, 0)).astype(np.int16)  # 0: the nearest pixels
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    red_green, red_green_spread = _mean_and_variance_of(red - green)
    twice_yellow_blue, spread = _mean_and_variance_of(red + green - 2 * blue)
    away_from_grey = math.hypot(red_green, twice_yellow_blue / 2)
    return math.sqrt(red_green_spread + spread / 4) + 0.3 * away_from_grey


def _mean_and_variance_of(values: np.ndarray) -> tuple[float, float]:
    """Of integers in few rows, so that int32 holds the squares of a column."""
    values = values.astype(np.int32)
    squares = np.einsum("ij,ij->j", values, values)
    return _mean_and_variance(values.size, int(values.sum()), int(squares.sum()))


def _mean_and_variance(count: int, total: int, squares: int) -> tuple[float, float]:
    return total / count, (count * squares - total**2) / count**2
