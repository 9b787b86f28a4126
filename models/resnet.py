"""ResNet-50's forward pass for inference: Detectron2's variant, with batch norm folded.

The pass is the same on every device. convolutions.py chooses what computes a convolution with its
bias, addition and ReLU.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from models import canvas
from models.convolutions import (
    Convolution,
    Follows,
    Operations,
    PlainOperations,
    agree,
    kind,
)
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
    """ResNet-50 from the arrays of read_resnet_weights, computed by plain torch."""

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


def with_fused_operations(model: ResNet, fused: Operations) -> tuple[ResNet, list[str]]:
    """The model computed by fused operations, and the kinds for which plain torch remains."""
    works: dict[tuple[str, str], bool] = {}

    def choose(convolution: Convolution, follows: Follows) -> Convolution:
        tried = convolution._replace(operations=fused)
        key = kind(convolution), follows
        if key not in works:
            works[key] = agree(tried, follows)
        return tried if works[key] else convolution

    chosen = map_convolutions(model, choose)
    return chosen, [name for (name, _), right in works.items() if not right]


def map_convolutions(
    model: ResNet, change: Callable[[Convolution, Follows], Convolution]
) -> ResNet:
    """The model with every convolution replaced by change(convolution, what follows it)."""

    def changed(block: Block) -> Block:
        return Block(
            change(block.reduce, "relu"),
            change(block.spread, "relu"),
            change(block.expand, "add_relu"),
            block.shortcut and change(block.shortcut, "nothing"),
        )

    stages = [[changed(block) for block in stage] for stage in model.stages]
    return model._replace(stem=change(model.stem, "relu"), stages=stages)


class Recorder(PlainOperations):
    """Plain torch that notes the largest value before each ReLU, sums included."""

    def __init__(self) -> None:
        self.largest = 0.0

    def convolve(self, x: torch.Tensor, convolution: Convolution) -> torch.Tensor:
        return self._noted(super().convolve(x, convolution))

    def convolve_add_relu(
        self, x: torch.Tensor, convolution: Convolution, residual: torch.Tensor
    ) -> torch.Tensor:
        return self._noted(self.convolve(x, convolution).add_(residual)).relu_()

    def _noted(self, x: torch.Tensor) -> torch.Tensor:
        self.largest = max(self.largest, float(x.abs().max()))
        return x


def largest_activation(model: ResNet, pixels: torch.Tensor) -> float:
    """The largest value of any layer for images, to be computed in float32.

    In half precision an overflow can pass unnoticed: a fused ReLU turns NaN into 0. With one layer
    beyond the range, the vectors are finite and have a cosine of 0.73 to the right ones.
    """
    recorder = Recorder()
    watched = map_convolutions(model, lambda part, _: part._replace(operations=recorder))
    resnet_features(watched, pixels)
    return recorder.largest


def resnet_features(
    model: ResNet, pixels: torch.Tensor, sizes: torch.Tensor | None = None
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
    x = model.stem.relu(x)
    if on_canvas:
        on_canvas[1].zero_strip(x)  # the pool pads with minus infinity, and ReLU leaves no less
    x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
    means = []
    for level, stage in enumerate(model.stages, start=2):
        for block in stage:
            inner = block.reduce.relu(x)
            if on_canvas:
                on_canvas[level].zero_strip(inner)
            inner = block.spread.relu(inner)
            residual = block.shortcut(x) if block.shortcut else x
            x = block.expand.add_relu(inner, residual)
        if level >= EARLY_LEVEL:
            means.append(
                on_canvas[level].mean(x) if on_canvas else x.mean((2, 3), dtype=torch.float32)
            )
    early, late = means
    classes = torch.addmm(model.classes_bias, late, model.classes_weight.T).argmax(1)
    normalize = torch.nn.functional.normalize
    return normalize(late), normalize(early), classes
