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


class ClipCrop(NamedTuple):
    across: Crop
    down: Crop


def clip_crop(width: int, height: int) -> ClipCrop:
    """Scale the shorter side to 224 pixels and crop the centre, as torchvision does."""
    short = min(width, height)
    scaled = int(CLIP_SIDE * width / short), int(CLIP_SIDE * height / short)
    crops = []
    for side, pixels in zip((width, height), scaled, strict=True):
        first = round((pixels - CLIP_SIDE) / 2)
        if max(scaled) <= MAX_SCALED_SIDE:
            crops.append(Crop(0, side, pixels, first))
        else:
            unit = side / pixels
            crops.append(Crop(first * unit, (first + CLIP_SIDE) * unit, CLIP_SIDE, 0))
    return ClipCrop(*crops)
