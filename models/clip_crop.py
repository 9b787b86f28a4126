"""What CLIP sees of an image: the centre, scaled so that the shorter side has 224 pixels."""

from typing import NamedTuple

CLIP_SIDE = 224  # pixels, ViT-B/32's input
MAX_SCALED_SIDE = 100 * CLIP_SIDE  # pixels; of longer sides only the crop is computed


class Crop(NamedTuple):
    """One axis: `start` to `end` of the image are scaled to `scaled` pixels; 224 are kept."""

    start: float
    end: float
    scaled: int
    first: int  # the first scaled pixel of the 224


def clip_crop(width: int, height: int) -> tuple[Crop, Crop]:
    """Scale the shorter side to 224 pixels and crop the centre, as torchvision does.

    The first of the two is of the rows, along the width.
    """
    short = min(width, height)
    scaled = int(CLIP_SIDE * width / short), int(CLIP_SIDE * height / short)

    def of_axis(side: int, pixels: int) -> Crop:
        first = round((pixels - CLIP_SIDE) / 2)
        if max(scaled) <= MAX_SCALED_SIDE:
            return Crop(0, side, pixels, first)
        unit = side / pixels
        return Crop(first * unit, (first + CLIP_SIDE) * unit, CLIP_SIDE, 0)

    return of_axis(width, scaled[0]), of_axis(height, scaled[1])
