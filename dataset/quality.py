"""Four numbers that tell dark, flat, blurred and grey images apart: columns of the manifest.

They are measured on the RGB pixels of the thumbnail, before these become a JPEG file: up to 200
pixels high. All sums are of integers, so they depend on nothing but the pixels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# Luma is measured at the height of a thumbnail, so most images need not be scaled again. Smaller
# ones are enlarged, as they show less detail of the same subject; very wide ones are squeezed.
HEIGHT = 200  # pixels
WIDTHS = 3, 1000  # pixels, at least and at most
EVERY_ROW = 5  # row counts: sharpness is then within some 2% of that of all rows
COLOUR_SIDE = 48  # pixels: colourfulness is that of a sample, usually within 1% of that of all


class Quality(NamedTuple):
    """What is measured of one image: numbers that float32 holds exactly, 0 or more."""

    brightness: float  # mean luma, to 255; luma is ITU-R 601's: 0.299 R + 0.587 G + 0.114 B
    contrast: float  # standard deviation of luma, to 127.5; 0 if all pixels are equally bright
    sharpness: float  # variance of the Laplacian of luma (up + down + left + right - 4 x itself)
    colourfulness: float  # of the sample; 0 if grey, 15 if slight, above 80 if extreme

    @classmethod
    def known(cls, *values: float | None) -> Quality | None:
        """These four numbers; None if they are not known."""
        numbers = [value for value in values if value is not None]
        return cls(*numbers) if len(numbers) == len(cls._fields) else None


COLUMNS = ", ".join(Quality._fields)
UNKNOWN = dict.fromkeys(Quality._fields)


def measure(small: Image.Image) -> Quality:
    """The quality of an image, by its RGB pixels up to HEIGHT high."""
    luma = small.convert("L")
    width = min(max(WIDTHS[0], round(luma.width * HEIGHT / luma.height)), WIDTHS[1])
    if luma.size != (size := (width, HEIGHT)):
        luma = luma.resize(size)  # bicubic
    pixels = np.asarray(luma)
    above, row, below = (
        pixels[first : HEIGHT - 2 + first : EVERY_ROW].astype(np.int16) for first in range(3)
    )
    laplacian = above[:, 1:-1] + below[:, 1:-1]
    laplacian += row[:, :-2]
    laplacian += row[:, 2:]
    laplacian -= 4 * row[:, 1:-1]
    brightness, spread = _mean_and_variance(row)
    _, sharpness = _mean_and_variance(laplacian)
    measured = brightness, math.sqrt(spread), sharpness, _colourfulness(small)
    return Quality(*np.array(measured, np.float32).tolist())


def _colourfulness(image: Image.Image) -> float:
    """M3 of Hasler and Suesstrunk, "Measuring colourfulness in natural images" (2003)."""
    size = min(image.width, COLOUR_SIDE), min(image.height, COLOUR_SIDE)
    pixels = np.asarray(image.resize(size, 0)).astype(np.int16)  # 0: the nearest pixels
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    red_green, red_green_spread = _mean_and_variance(red - green)
    twice_yellow_blue, spread = _mean_and_variance(red + green - 2 * blue)
    away_from_grey = math.hypot(red_green, twice_yellow_blue / 2)
    return math.sqrt(red_green_spread + spread / 4) + 0.3 * away_from_grey


def _mean_and_variance(values: np.ndarray) -> tuple[float, float]:
    """Of integers in few rows, so that int32 holds the squares of a column: nothing is rounded."""
    values = values.astype(np.int32)
    count, total = values.size, int(values.sum())
    squares = int(np.einsum("ij,ij->j", values, values).sum())
    return total / count, (count * squares - total**2) / count**2
