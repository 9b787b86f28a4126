"""ResNet-50's forward pass for inference: Detectron2's variant, with batch norm folded.

The pass is the same on every device. convolutions.py chooses what computes a convolution with its
bias, addition and ReLU.
"""

from typing import NamedTuple

import numpy as np
import torch

from models import canvas
from models.convolutions import Convolution, Operations
from weights.resnet50 import BATCH_NORM_EPSILON, RESNET_STAGES

# Red, green, blue. Caffe2's ImageNet models, from which these means are, take blue, green, red.
PIXEL_MEANS = (123.675, 116.28, 103.53)

LEVELS = 6  # scales of the maps: 1 pixel of the image, then 2, 4, 8, 16, 32
EARLY_LEVEL = 4  # res4's


class Block(NamedTuple):
    """A bottleneck: 1x1 (with the stride), 3x3, 1x1, and the 1x1 shortcut where shapes change.

    The shortcut has no bias: the bias of `expand`, to which it is added, contains it.
    """

    reduce: Convolution
    spread: Convolution
    expand: Convolution
    shortcut: Convolution | None


class ResNet(NamedTuple):
    pixel_means: torch.Tensor  # on the device: a copy for each batch would wait for the last one
    stem: Convolution
    stages: list[list[Block]]
    classes_weight: torch.Tensor
    classes_bias: torch.Tensor


def fold_batch_norm(
    arrays: dict[str, np.ndarray], convolution: str, norm: str
) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of the one convolution that equals a convolution and its batch norm."""
    gamma, beta, mean, variance = (
        arrays[f"{norm}_bn_{part}"].astype(np.float64)
        for part in ("gamma", "beta", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
    weight = arrays[f"{convolution}_w"] * scale.astype(np.float32)[:, None, None, None]
    return weight, (beta - mean * scale).astype(np.float32)


def build_resnet(arrays: dict[str, np.ndarray], device: torch.device, dtype: torch.dtype) -> ResNet:
    """ResNet-50 from the arrays of read_resnet_weights, ready for `resnet_features`."""

    def convolution(
        weight: np.ndarray, bias: np.ndarray | None, stride: int = 1, padding: int = 0
    ) -> Convolution:
        laid_out = torch.from_numpy(weight).to(device, dtype, memory_format=torch.channels_last)
        on_device = None if bias is None else torch.from_numpy(bias).to(device, dtype)
        return Convolution(laid_out, on_device, stride, padding)

    def folded(branch: str) -> tuple[np.ndarray, np.ndarray]:
        return fold_batch_norm(arrays, branch, branch)

    stem_weight, stem_bias = fold_batch_norm(arrays, "conv1", "res_conv1")
    stages = []
    for stage, (blocks, _) in enumerate(RESNET_STAGES, start=2):
        built = []
        for block in range(blocks):
            branch = f"res{stage}_{block}_branch"
            stride = 2 if block == 0 and stage > 2 else 1
            expand_weight, expand_bias = folded(branch + "2c")
            shortcut = None
            if block == 0:
                shortcut_weight, shortcut_bias = folded(branch + "1")
                shortcut = convolution(shortcut_weight, None, stride)
                expand_bias = expand_bias + shortcut_bias
            built.append(
                Block(
                    convolution(*folded(branch + "2a"), stride),
                    convolution(*folded(branch + "2b"), padding=1),
                    convolution(expand_weight, expand_bias),
                    shortcut,
                )
            )
        stages.append(built)
    return ResNet(
        torch.tensor(PIXEL_MEANS, device=device),
        # Pixels come as red, green, blue.
        convolution(stem_weight[:, ::-1].copy(), stem_bias, 2, 3),
        stages,
        torch.tensor(arrays["fc1000_w"], device=device),
        torch.tensor(arrays["fc1000_b"], device=device),
    )


def resnet_features(
    model: ResNet, operations: Operations, pixels: torch.Tensor, sizes: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """res5 (n, 2048) and res4 (n, 1024) as float32 unit vectors, and the ImageNet classes (n,).

    `pixels` is uint8 (n, height, width, 3), red, green, blue, on the device of the model. `sizes`,
    int64 (n, 2), are the height and width of images at the top left of a larger canvas; without
    them each image fills it.
    """
    # A permuted NHWC tensor is a channels-last NCHW one: nothing is copied.
    x = (pixels - model.pixel_means).to(model.stem.weight.dtype).permute(0, 3, 1, 2)
    height, width = pixels.shape[1:3]
    on_canvas = None if sizes is None else canvas.regions(sizes, height, width, LEVELS)
    if on_canvas:
        x = on_canvas[0].zero_outside(x)
    x = operations.convolve_relu(x, model.stem)
    if on_canvas:
        on_canvas[1].zero_strip(x)  # the pool pads with minus infinity, and ReLU leaves no less
    x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
    means = []
    for level, stage in enumerate(model.stages, start=2):
        for block in stage:
            inner = operations.convolve_relu(x, block.reduce)
            if on_canvas:
                on_canvas[level].zero_strip(inner)
            inner = operations.convolve_relu(inner, block.spread)
            residual = operations.convolve(x, block.shortcut) if block.shortcut else x
            x = operations.convolve_add_relu(inner, block.expand, residual)
        if level >= EARLY_LEVEL:
            means.append(
                on_canvas[level].mean(x) if on_canvas else x.mean((2, 3), dtype=torch.float32)
            )
    early, late = means
    classes = torch.addmm(model.classes_bias, late, model.classes_weight.T).argmax(1)
    normalize = torch.nn.functional.normalize
    return normalize(late), normalize(early), classes
