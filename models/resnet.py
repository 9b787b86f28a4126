"""ResNet-50's forward pass for inference: Detectron2's variant, with batch norm folded.

The pass is the same on every device. convolutions.py chooses what computes a convolution with its
bias, addition and ReLU.
"""

from typing import NamedTuple

import numpy as np
import torch

from models.convolutions import Convolution, Operations
from weights.resnet50 import BATCH_NORM_EPSILON, RESNET_STAGES

# Red, green, blue. Caffe2's ImageNet models, from which these means are, take blue, green, red.
PIXEL_MEANS = (123.675, 116.28, 103.53)


class Block(NamedTuple):
    """A bottleneck: 1x1 (with the stride), 3x3, 1x1, and the 1x1 shortcut where shapes change."""

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

    def convolution(name: str, norm: str, stride: int = 1, padding: int = 0) -> Convolution:
        weight, bias = fold_batch_norm(arrays, name, norm)
        if name == "conv1":  # pixels come as red, green, blue
            weight = weight[:, ::-1].copy()
        laid_out = torch.from_numpy(weight).to(device, dtype, memory_format=torch.channels_last)
        return Convolution(laid_out, torch.from_numpy(bias).to(device, dtype), stride, padding)

    stages = []
    for stage, (blocks, _) in enumerate(RESNET_STAGES, start=2):
        built = []
        for block in range(blocks):
            branch = f"res{stage}_{block}_branch"
            stride = 2 if block == 0 and stage > 2 else 1
            built.append(
                Block(
                    convolution(branch + "2a", branch + "2a", stride),
                    convolution(branch + "2b", branch + "2b", padding=1),
                    convolution(branch + "2c", branch + "2c"),
                    convolution(branch + "1", branch + "1", stride) if block == 0 else None,
                )
            )
        stages.append(built)
    return ResNet(
        torch.tensor(PIXEL_MEANS, device=device),
        convolution("conv1", "res_conv1", 2, 3),
        stages,
        torch.tensor(arrays["fc1000_w"], device=device),
        torch.tensor(arrays["fc1000_b"], device=device),
    )


def resnet_features(
    model: ResNet, operations: Operations, pixels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """res5 (n, 2048) and res4 (n, 1024) as float32 unit vectors, and the ImageNet classes (n,).

    `pixels` is uint8 (n, height, width, 3), red, green, blue, on the device of the model.
    """
    # A permuted NHWC tensor is a channels-last NCHW one: nothing is copied.
    x = (pixels - model.pixel_means).to(model.stem.bias.dtype).permute(0, 3, 1, 2)
    x = operations.convolve_relu(x, model.stem)
    x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
    means_by_stage = []
    for stage in model.stages:
        for block in stage:
            inner = operations.convolve_relu(x, block.reduce)
            inner = operations.convolve_relu(inner, block.spread)
            residual = operations.convolve(x, block.shortcut) if block.shortcut else x
            x = operations.convolve_add_relu(inner, block.expand, residual)
        means_by_stage.append(x)
    early, late = (y.mean((2, 3), dtype=torch.float32) for y in means_by_stage[2:])
    classes = torch.addmm(model.classes_bias, late, model.classes_weight.T).argmax(1)
    normalize = torch.nn.functional.normalize
    return normalize(late), normalize(early), classes
