"""CLIP's input made on the device: Pillow's bicubic resize and the centre crop.

To scale an image for CLIP takes as much CPU time as to decode it, and a GPU has the pixels anyway.
Pillow's resize (Resample.c) has two passes, along the rows and then along the columns. Each is a
weighted sum, rounded to 8 bits. As matrix products they cost a hundredth of ResNet-50.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.clip_crop import CLIP_SIDE, clip_crop

SUPPORT = 2.0  # pixels of the smaller image on each side of a centre: the bicubic filter's
A = -0.5  # the bicubic filter's parameter in Pillow
PRECISION_BITS = 22  # of Pillow's weights, which are integers


def crop_table(sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """What is scaled of images of (height, width), float64 (2, n, 5): columns, then rows.

    The numbers are the side of the image and those of clip_crop.Crop.
    """
    crops = [(height, width, clip_crop(width, height)) for height, width in sizes]
    table = np.array(
        [
            [(width, *crop.across) for _, width, crop in crops],
            [(height, *crop.down) for height, _, crop in crops],
        ],
        np.float64,
    )
    table[:, :, 1:3] = table[:, :, 1:3].astype(np.float32)  # start and end: Pillow's precision
    return table


def clip_inputs(pixels: Tensor, crops: Tensor) -> Tensor:
    """uint8 (n, 224, 224, 3) of images at the top left of canvases, uint8 (n, height, width, 3).

    The result is what decode.clip_input makes of the same pixels, except that 2 values of 10,000
    may differ by 1, since sums here are rounded to 24 bits. `crops` is the images' crop_table.
    """
    n, height, width, _ = pixels.shape
    largest_scale = min(height, width) / (CLIP_SIDE - 1)  # scaled sides are rounded down
    across = axis_weights(crops[0], width, largest_scale)
    down = axis_weights(crops[1], height, largest_scale)
    x = pixels.permute(0, 1, 3, 2).float()  # (n, height, 3, width)
    x = _to_8_bits(x.reshape(n, height * 3, width) @ across.transpose(1, 2))
    x = _to_8_bits(down @ x.view(n, height, 3 * CLIP_SIDE))
    return x.view(n, CLIP_SIDE, 3, CLIP_SIDE).permute(0, 1, 3, 2).to(torch.uint8)


def axis_weights(crops: Tensor, side: int, largest_scale: float) -> Tensor:
    """Pillow's weights of one pass, float32 (n, 224, side), each a multiple of 2**-22.

    They are computed on the device, by tensors whose shapes depend on n, `side` and
    `largest_scale` alone.
    """
    n = len(crops)
    size, start, end, scaled, first = (column[:, None] for column in crops.unbind(1))  # (n, 1)
    scale = (end - start) / scaled
    filter_scale = scale.clamp(min=1.0)
    support = SUPPORT * filter_scale
    places = first + torch.arange(CLIP_SIDE, device=crops.device)
    centres = start + (places + 0.5) * scale  # (n, 224)
    # As C's conversion to int does, towards zero.
    begin = (centres - support + 0.5).trunc().clamp(min=0)
    stop = torch.minimum((centres + support + 0.5).trunc(), size)
    taps = int(2 * SUPPORT * max(1.0, largest_scale)) + 2
    pixels = begin[:, :, None] + torch.arange(taps, device=crops.device)  # (n, 224, taps)
    values = bicubic((pixels - centres[:, :, None] + 0.5) / filter_scale[:, :, None])
    values = values.masked_fill_(pixels >= stop[:, :, None], 0)
    values /= values.sum(2, keepdim=True)
    unit = 2.0**PRECISION_BITS
    rounded = (values * unit + torch.copysign(torch.full_like(values, 0.5), values)).trunc() / unit
    weights = torch.zeros(n, CLIP_SIDE, side, device=crops.device)
    # Places beyond the image have weight 0, which is added to that of the last pixel.
    return weights.scatter_add_(2, pixels.clamp_(max=side - 1).long(), rounded.float())


def bicubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel."""
    x = x.abs()
    near = ((A + 2) * x - (A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * A
    return torch.where(x < 1, near, torch.where(x < SUPPORT, far, 0.0))


def _to_8_bits(x: Tensor) -> Tensor:
    return x.add_(0.5).floor_().clamp_(0, 255)
