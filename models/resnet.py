"""ResNet-50's forward pass: Detectron2's variant with batch norm folded, written for inference.

Plain torch runs a convolution, the addition and the ReLU that follow one after the other. oneDNN on
a CPU and cuDNN on a GPU compute them in one pass over memory, through operators that torch's own
compiler emits for frozen models. These are not part of torch's documented interface, so each kind
of convolution is tried first (`agrees`), and plain torch computes the kinds for which they fail.

Images of several sizes share a batch, each at the top left of a common canvas. An image's numbers
are those of the image alone. Every stage of ResNet-50 halves a side to ceil(side / 2), on the
canvas as on the image, so each map of an image is at the top left of the map of its canvas. What a
convolution or the max pool reads beyond that part is one row and one column, which `zero_strip`
sets to zero: the padding that the image alone would have. Nothing further out is read. The averages
over space are taken over the image's part alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weights.resnet50 import BATCH_NORM_EPSILON, RESNET_STAGES

# Red, green, blue. Caffe2's ImageNet models, from which these means are, take blue, green, red.
PIXEL_MEANS = (123.675, 116.28, 103.53)

LEVELS = 6  # scales of the maps: 1 pixel of the image, then 2, 4, 8, 16, 32
EARLY_LEVEL = 4  # res4's

STEP = 64  # pixels; canvases have 6.5% more pixels than the images of COCO, with 32 3.3%

# Largest difference of values of up to 10, by precision; a wrong operation differs by more than 1.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.2}
SAMPLE = (2, 9, 10)  # images, height, width of the maps that are tried
# What an undocumented operator raises if it does not exist, or not for this device or precision.
REFUSALS = (RuntimeError, AttributeError, TypeError)


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution, what follows it, and the function that computes both.

    Maps are channels-last. A residual, which a convolution that `adds` gets, may be overwritten.
    """

    weight: Tensor
    bias: Tensor | None = None
    stride: int = 1
    padding: int = 0
    adds: bool = False
    relu: bool = True
    compute: Compute

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.compute(self, x, residual)

    @property
    def kind(self) -> str:
        """What an operator may support or not, such as "3x3/1 of 64 to 64 channels"."""
        outputs, inputs, side, _ = self.weight.shape
        added = " and an addition" if self.adds else ""
        return f"{side}x{side}/{self.stride} of {inputs} to {outputs} channels{added}"


Compute = Callable[[Convolution, Tensor, Tensor | None], Tensor]


def plain(conv: Convolution, x: Tensor, residual: Tensor | None) -> Tensor:
    """By torch's public functions, on any device."""
    result = torch.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
    if residual is not None:
        result.add_(residual)
    return result.relu_() if conv.relu else result


def onednn(conv: Convolution, x: Tensor, residual: Tensor | None) -> Tensor:
    """By oneDNN on a CPU: bias, addition and ReLU are computed while the sums are in registers.

    With plain torch the models take 1.44 times as long at 640x480 and 1.15 times at mixed sizes.
    """
    sizes = ([conv.padding] * 2, [conv.stride] * 2, [1, 1], 1)
    if residual is not None:
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            residual, x, conv.weight, conv.bias, *sizes, "add", 1.0, "relu", [], ""
        )
    after = "relu" if conv.relu else "none"
    return torch.ops.mkldnn._convolution_pointwise(x, conv.weight, conv.bias, *sizes, after, [], "")


def cudnn(conv: Convolution, x: Tensor, residual: Tensor | None) -> Tensor:
    """By cuDNN on a GPU, where addition and ReLU are part of the convolution's kernel."""
    if not conv.relu:
        return plain(conv, x, residual)
    sizes = ([conv.stride] * 2, [conv.padding] * 2, [1, 1], 1)
    if residual is not None:
        return torch.cudnn_convolution_add_relu(x, conv.weight, residual, 1.0, conv.bias, *sizes)
    return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *sizes)


def fused_operator(device: torch.device) -> Compute:
    """What computes a convolution and what follows it in one pass on the device."""
    return cudnn if device.type == "cuda" else onednn


def agrees(conv: Convolution) -> bool:
    """Whether a convolution gives on a small sample what plain torch gives in float32."""
    device, dtype = conv.weight.device, conv.weight.dtype
    exact = replace(
        conv,
        weight=conv.weight.float().cpu(),
        bias=None if conv.bias is None else conv.bias.float().cpu(),
        compute=plain,
    )
    random = torch.Generator().manual_seed(0)
    # Inputs that make outputs of up to about 10 with any weights.
    scale = 1 / max(float(exact.weight.square().sum((1, 2, 3)).max()) ** 0.5, 1e-9)
    n, *sides = SAMPLE
    x = _rounded(scale * torch.randn(n, conv.weight.shape[1], *sides, generator=random), dtype)
    residual = _rounded(torch.randn(exact(x.float()).shape, generator=random), dtype)
    given = [x, residual] if conv.adds else [x]
    expected = exact(*(part.float() for part in given))
    on_device = [part.to(device) for part in given]
    try:
        if device.type == "cuda":  # an operator may read its output before it writes: leave NaN
            torch.full(expected.shape, float("nan"), device=device, dtype=dtype)
        result = conv(*on_device).float().cpu()
    except REFUSALS:
        return False
    scale = max(10.0, float(expected.abs().max())) / 10  # of rounding errors
    # Written so that NaN disagrees.
    return bool((result - expected).abs().max() < TOLERANCE[dtype] * scale)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


class Block(NamedTuple):
    """A bottleneck: 1x1 (with the stride), 3x3, 1x1, and the 1x1 shortcut where shapes change.

    The shortcut has no bias: the bias of `expand`, to which it is added, contains it.
    """

    reduce: Convolution
    spread: Convolution
    expand: Convolution
    shortcut: Convolution | None


@dataclass(frozen=True, kw_only=True)
class ResNet:
    pixel_means: Tensor  # on the device: a copy for each batch would wait for the last one
    stem: Convolution
    stages: list[list[Block]]
    classes_weight: Tensor
    classes_bias: Tensor

    def with_convolutions(self, change: Callable[[Convolution], Convolution]) -> ResNet:
        """The model with every convolution replaced by what `change` makes of it."""

        def changed(block: Block) -> Block:
            shortcut = block.shortcut and change(block.shortcut)
            reduce, spread, expand = map(change, block[:3])
            return Block(reduce, spread, expand, shortcut)

        stages = [list(map(changed, stage)) for stage in self.stages]
        return replace(self, stem=change(self.stem), stages=stages)


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
        folded: tuple[np.ndarray, np.ndarray], stride: int = 1, padding: int = 0
    ) -> Convolution:
        weight, bias = (torch.from_numpy(part).to(device, dtype) for part in folded)
        weight = weight.to(dtype, memory_format=torch.channels_last)
        return Convolution(weight=weight, bias=bias, stride=stride, padding=padding, compute=plain)

    def block(branch: str, stride: int, with_shortcut: bool) -> Block:
        reduce, spread, (weight, bias) = (folded(branch + part) for part in ("2a", "2b", "2c"))
        shortcut = None
        if with_shortcut:
            shortcut_weight, shortcut_bias = folded(branch + "1")
            shortcut = convolution((shortcut_weight, shortcut_bias), stride)
            shortcut = replace(shortcut, bias=None, relu=False)
            bias = bias + shortcut_bias
        expand = replace(convolution((weight, bias)), adds=True)
        return Block(convolution(reduce, stride), convolution(spread, 1, 1), expand, shortcut)

    def folded(branch: str) -> tuple[np.ndarray, np.ndarray]:
        return fold_batch_norm(arrays, branch, branch)

    stem_weight, stem_bias = fold_batch_norm(arrays, "conv1", "res_conv1")
    return ResNet(
        pixel_means=torch.tensor(PIXEL_MEANS, device=device),
        # Pixels come as red, green, blue.
        stem=convolution((stem_weight[:, ::-1].copy(), stem_bias), 2, 3),
        stages=[
            [
                block(f"res{stage}_{i}_branch", 2 if i == 0 and stage > 2 else 1, i == 0)
                for i in range(blocks)
            ]
            for stage, (blocks, _) in enumerate(RESNET_STAGES, start=2)
        ],
        classes_weight=torch.tensor(arrays["fc1000_w"], device=device),
        classes_bias=torch.tensor(arrays["fc1000_b"], device=device),
    )


def with_operator(model: ResNet, fused: Compute) -> tuple[ResNet, list[str]]:
    """The model computed by a fused operator, and the kinds for which plain torch remains."""
    works: dict[str, bool] = {}

    def choose(convolution: Convolution) -> Convolution:
        tried = replace(convolution, compute=fused)
        if tried.kind not in works:
            works[tried.kind] = agrees(tried)
        return tried if works[tried.kind] else convolution

    chosen = model.with_convolutions(choose)
    return chosen, [kind for kind, right in works.items() if not right]


def rounded_up(side: int) -> int:
    """The side of the canvas for an image's side: few canvases are needed for all images."""
    return -(-side // STEP) * STEP


@dataclass(frozen=True, kw_only=True)
class Region:
    """The part of a map (n, channels, height, width) that belongs to each image."""

    inside: Tensor  # bool (n, 1, height, width)
    # Row h and column w of each image, the first that are not its own: int64 (n * (height + width))
    image: Tensor
    row: Tensor
    column: Tensor
    outside: Tensor  # bool (n * (height + width), 1): False where an image fills the canvas

    def zero_outside(self, x: Tensor) -> Tensor:
        """x with zeros outside the images."""
        return x.masked_fill(~self.inside, 0)

    def zero_strip(self, x: Tensor) -> Tensor:
        """x with zeros in the row and the column that follow each image, in place."""
        maps = x.permute(0, 2, 3, 1)
        strip = self.image, self.row, self.column
        maps[strip] = maps[strip].masked_fill_(self.outside, 0)
        return x

    def mean(self, x: Tensor) -> Tensor:
        """The mean over each image's part, float32 (n, channels)."""
        return self.zero_outside(x).sum((2, 3), dtype=torch.float32) / self.inside.sum((2, 3))


def regions(sizes: Tensor, height: int, width: int, count: int) -> list[Region]:
    """The parts of images of `sizes`, int64 (n, 2), on a canvas and on maps of half the size each.

    All is computed on the device of `sizes`, by tensors whose shapes depend on n and the canvas.
    """
    found = []
    for _ in range(count):
        found.append(_region(sizes, height, width))
        sizes, height, width = (sizes + 1) // 2, -(-height // 2), -(-width // 2)
    return found


def _region(sizes: Tensor, height: int, width: int) -> Region:
    n = len(sizes)
    rows, columns = (torch.arange(side, device=sizes.device) for side in (height, width))
    h, w = sizes[:, :1], sizes[:, 1:]  # (n, 1) each
    inside = (rows < h)[:, :, None] & (columns < w)[:, None, :]
    row = torch.cat([h.expand(n, width), rows.expand(n, height)], 1).clamp(max=height - 1)
    column = torch.cat([columns.expand(n, width), w.expand(n, height)], 1).clamp(max=width - 1)
    image = torch.arange(n, device=sizes.device)[:, None].expand_as(row)
    outside = (row >= h) | (column >= w)
    return Region(
        inside=inside[:, None],
        image=image.reshape(-1),
        row=row.reshape(-1),
        column=column.reshape(-1),
        outside=outside.reshape(-1, 1),
    )


def largest_activation(model: ResNet, pixels: Tensor) -> float:
    """The largest value of any layer for images, to be computed in float32.

    In half precision an overflow can pass unnoticed: a fused ReLU turns NaN into 0. With one layer
    beyond the range, the vectors are finite and have a cosine of 0.73 to the right ones.
    """
    largest = 0.0

    def watched(convolution: Convolution, x: Tensor, residual: Tensor | None) -> Tensor:
        nonlocal largest
        result = plain(replace(convolution, relu=False), x, None)
        largest = max(largest, float(result.abs().max()))
        if residual is not None:
            largest = max(largest, float(result.add_(residual).abs().max()))
        return result.relu_() if convolution.relu else result

    resnet_features(model.with_convolutions(lambda part: replace(part, compute=watched)), pixels)
    return largest


def resnet_features(
    model: ResNet, pixels: Tensor, sizes: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """res5 (n, 2048) and res4 (n, 1024) as float32 unit vectors, and the ImageNet classes (n,).

    `pixels` is uint8 (n, height, width, 3), red, green, blue, on the device of the model. `sizes`,
    int64 (n, 2), are the height and width of images at the top left of a larger canvas; without
    them each image fills it.
    """
    # A permuted NHWC tensor is a channels-last NCHW one: nothing is copied.
    x = (pixels - model.pixel_means).to(model.stem.weight.dtype).permute(0, 3, 1, 2)
    height, width = pixels.shape[1:3]
    on_canvas = None if sizes is None else regions(sizes, height, width, LEVELS)
    if on_canvas:
        x = on_canvas[0].zero_outside(x)
    x = model.stem(x)
    if on_canvas:
        on_canvas[1].zero_strip(x)  # the pool pads with minus infinity, and ReLU leaves no less
    x = torch.nn.functional.max_pool2d(x, 3, 2, 1)
    means = []
    for level, stage in enumerate(model.stages, start=2):
        for block in stage:
            inner = block.reduce(x)
            if on_canvas:
                on_canvas[level].zero_strip(inner)
            inner = block.spread(inner)
            x = block.expand(inner, block.shortcut(x) if block.shortcut else x)
        if level >= EARLY_LEVEL:
            mean = on_canvas[level].mean(x) if on_canvas else x.mean((2, 3), dtype=torch.float32)
            means.append(mean)
    early, late = means
    classes = torch.addmm(model.classes_bias, late, model.classes_weight.T).argmax(1)
    normalize = torch.nn.functional.normalize
    return normalize(late), normalize(early), classes
