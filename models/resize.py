"""CLIP's input made on the device: Pillow's bicubic resize and the centre crop.

Decoding an image costs as much processor time as scaling it for CLIP, and a GPU has the pixels
anyway. Pillow's resize (Resample.c) is two passes, along the rows and then along the columns, each
a weighted sum rounded to 8 bits; as matrix products they cost a hundredth of ResNet-50.
"""

from typing import NamedTuple

import numpy as np
import torch

from models.clip_crop import CLIP_SIDE, Crop, clip_crop

SUPPORT = 2.0  # pixels of the smaller image on each side of a centre: the bicubic filter's
A = -0.5  # the bicubic filter's parameter in Pillow
PRECISION_BITS = 22  # of Pillow's weights, which are integers


class Weights(NamedTuple):
    """What an image size needs: a row for each of the 224 columns or rows of the result."""

    across: torch.Tensor  # float32 (224, width)
    down: torch.Tensor  # float32 (224, height)


def weights_for(height: int, width: int, device: torch.device) -> Weights:
    """The weights of both passes for images of one size, cropped, on the device."""
    crop = clip_crop(width, height)
    across = axis_weights(width, crop.across)
    down = axis_weights(height, crop.down)
    return Weights(*(torch.from_numpy(part).to(device) for part in (across, down)))


def axis_weights(size: int, crop: Crop) -> np.ndarray:
    """Pillow's weights of one pass, float32 (224, size), each a multiple of 2**-22."""
    start, end = (float(np.float32(edge)) for edge in (crop.start, crop.end))  # Pillow's precision
    scale = (end - start) / crop.scaled
    filter_scale = max(scale, 1.0)
    support = SUPPORT * filter_scale
    places = np.arange(crop.first, crop.first + CLIP_SIDE)
    centres = start + (places + 0.5) * scale
    # As C's conversion to int does, towards zero.
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)[:, None]
    last = np.minimum((centres + support + 0.5).astype(np.int64), size)[:, None]
    pixels = np.arange(size)
    values = bicubic((pixels - centres[:, None] + 0.5) / filter_scale)
    values[(pixels < first) | (pixels >= last)] = 0
    values /= values.sum(1, keepdims=True)
    unit = 2.0**PRECISION_BITS
    rounded: np.ndarray = np.trunc(values * unit + np.copysign(0.5, values)) / unit
    return rounded.astype(np.float32)


def bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    x = np.abs(x)
    near = ((A + 2) * x - (A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * A
    return np.where(x < 1, near, np.where(x < SUPPORT, far, 0.0))


def clip_inputs(pixels: torch.Tensor, weights: Weights) -> torch.Tensor:
    """uint8 (n, 224, 224, 3) of uint8 (n, height, width, 3).

    What images.clip_input makes of the same pixels; two values in 10,000 may differ by 1, since
    sums here are rounded to 24 bits.
    """
    n, height, width, _ = pixels.shape
    x = pixels.permute(0, 1, 3, 2).float()  # (n, height, 3, width)
    x = _to_8_bits(x.reshape(-1, width) @ weights.across.T)
    x = _to_8_bits(weights.down @ x.view(n, height, 3 * CLIP_SIDE))
    return x.view(n, CLIP_SIDE, 3, CLIP_SIDE).permute(0, 1, 3, 2).to(torch.uint8)


def _to_8_bits(x: torch.Tensor) -> torch.Tensor:
    return x.add_(0.5).floor_().clamp_(0, 255)
