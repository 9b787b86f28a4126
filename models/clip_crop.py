"""One image: the bytes of a file -> RGB pixels, the model's CLIP input, a thumbnail.

Pixels are what Pillow decodes, as RGB. EXIF rotation is not applied: it never was, and indexes stay
comparable. Of an animation the first frame counts.
"""

from typing import NamedTuple

CLIP_SIDE = 224  # pixels, ViT-B/32's input
MAX_SCALED_SIDE = 100 * CLIP_SIDE  # pixels; beyond, only what the crop keeps is computed


class Crop(NamedTuple):
    """What CLIP sees along one axis: `start` to `end` scaled to `scaled` pixels, 224 kept."""

    start: float
    end: float
    scaled: int
    first: int  # of the 224, among the scaled pixels


class ClipCrop(NamedTuple):
    across: Crop
    down: Crop


def clip_crop(width: int, height: int) -> ClipCrop:
    """The shorter side scaled to 224, and the centre cut out, as torchvision does it."""
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
