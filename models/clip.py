"""CLIP: its input made on the device, and the forward pass of the image tower of OpenAI's ViT-B/32.

To scale an image for CLIP takes as much CPU time as to decode it, and a GPU has the pixels anyway.
Pillow's bicubic resize (Resample.c) has two passes, along the rows and then along the columns. Each
is a weighted sum, rounded to 8 bits. As matrix products they cost a hundredth of ResNet-50.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import layer_norm, linear, normalize, scaled_dot_product_attention, silu

from models.clip_crop import CLIP_SIDE, clip_crop
from models.resnet import REFUSALS, TOLERANCE
from weights.clip import CLIP_LAYERS, CLIP_WIDTH, clip_shapes

HEADS, HEAD_WIDTH = 12, 64
PATCH = 32  # pixels
GRID = 7  # patches along a side of 224 pixels
PIXEL_MEANS = (0.48145466, 0.4578275, 0.40821073)
PIXEL_DEVIATIONS = (0.26862954, 0.26130258, 0.27577711)
GELU_SCALE = 1.702  # "quick" GELU: x * sigmoid(1.702 x), which is SiLU(1.702 x) / 1.702

SUPPORT = 2.0  # pixels of the smaller image on each side of a centre: the bicubic filter's
A = -0.5  # the bicubic filter's parameter in Pillow
PRECISION_BITS = 22  # of Pillow's weights, which are integers


class Affine(NamedTuple):
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, kw_only=True)
class Layer:
    norm1: Affine
    query_key_value: Affine
    out: Affine
    norm2: Affine
    widen: Affine  # multiplied by GELU_SCALE, and `narrow` divided by it: so SiLU is between them
    narrow: Affine


@dataclass(frozen=True, kw_only=True)
class VisionTower:
    pixel_means: Tensor
    pixel_deviations: Tensor
    patches: Affine  # (768, 3072): rows of a patch, then columns, then channels
    first_token: Tensor  # (1, 768): class embedding with its position
    positions: Tensor  # (49, 768)
    norm_before: Affine
    layers: list[Layer]
    norm_after: Affine
    projection: Tensor


def build_vision_tower(path: Path, device: torch.device, dtype: torch.dtype) -> VisionTower:
    """The tower from model.safetensors. Other tensors (the text tower) are not read."""
    with_onednn = device.type == "cpu" and onednn_linear_agrees(dtype)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in clip_shapes()}

    def norm(name: str) -> Affine:
        return Affine(*(tensors[f"{name}.{part}"].to(device) for part in ("weight", "bias")))

    def affine(*names: str, scale_weight: float = 1, scale_bias: float = 1) -> Affine:
        weight, bias = (
            (torch.cat([tensors[f"{name}.{part}"] for name in names]) * scale).to(device, dtype)
            for part, scale in (("weight", scale_weight), ("bias", scale_bias))
        )
        if with_onednn:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight)  # as oneDNN wants it
        return Affine(weight, bias)

    layers = []
    for index in range(CLIP_LAYERS):
        layer = f"vision_model.encoder.layers.{index}."
        projections = (f"{layer}self_attn.{name}_proj" for name in "qkv")
        layers.append(
            Layer(
                norm1=norm(layer + "layer_norm1"),
                query_key_value=affine(*projections),
                out=affine(layer + "self_attn.out_proj"),
                norm2=norm(layer + "layer_norm2"),
                widen=affine(layer + "mlp.fc1", scale_weight=GELU_SCALE, scale_bias=GELU_SCALE),
                narrow=affine(layer + "mlp.fc2", scale_weight=1 / GELU_SCALE),
            )
        )
    embeddings = "vision_model.embeddings."
    positions = tensors[embeddings + "position_embedding.weight"]
    patches = tensors[embeddings + "patch_embedding.weight"].permute(0, 2, 3, 1)
    return VisionTower(
        pixel_means=torch.tensor(PIXEL_MEANS, device=device),
        pixel_deviations=torch.tensor(PIXEL_DEVIATIONS, device=device),
        patches=Affine(
            patches.reshape(CLIP_WIDTH, -1).to(device, dtype),
            torch.zeros(CLIP_WIDTH, device=device, dtype=dtype),
        ),
        first_token=(tensors[embeddings + "class_embedding"] + positions[0]).to(device)[None],
        positions=positions[1:].to(device),
        norm_before=norm("vision_model.pre_layrnorm"),
        layers=layers,
        norm_after=norm("vision_model.post_layernorm"),
        projection=tensors["visual_projection.weight"].to(device),
    )


def clip_features(tower: VisionTower, pixels: Tensor) -> Tensor:
    """Unit vectors, float32 (n, 512), of uint8 (n, 224, 224, 3) red, green, blue pixels.

    Matrix products are computed in the precision of the tower; layer norms and sums of layers are
    computed in float32. So bfloat16 keeps a cosine of 0.99997 to float32; otherwise 0.99992.
    """
    n = len(pixels)
    x = (pixels / 255 - tower.pixel_means) / tower.pixel_deviations
    x = x.reshape(n, GRID, PATCH, GRID, PATCH, 3).transpose(2, 3).reshape(n, GRID * GRID, -1)
    x = _linear(x, tower.patches) + tower.positions
    x = torch.cat([tower.first_token.expand(n, 1, -1), x], 1)
    x = _norm(x, tower.norm_before)
    for layer in tower.layers[:-1]:
        x = _transform(x, x, layer)
    # The result is the first token alone: the last layer attends to all but computes only that.
    x = _transform(x[:, :1], x, tower.layers[-1])
    return normalize(linear(_norm(x[:, 0], tower.norm_after), tower.projection))


def onednn_linear_agrees(dtype: torch.dtype) -> bool:
    """Whether oneDNN's linear layers, which are undocumented, agree with torch's here."""
    random = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(8, 64, generator=random).to(dtype) for _ in range(2))
    bias = torch.ones(8, dtype=dtype)
    try:
        packed = Affine(torch.ops.mkldnn._reorder_linear_weight(weight / 8), bias)
        result = _linear(x, packed, then_silu=True)
    except REFUSALS:
        return False
    return torch.allclose(result, silu(linear(x, weight / 8, bias)), atol=TOLERANCE[dtype])


def _linear(x: Tensor, affine: Affine, then_silu: bool = False) -> Tensor:
    """A linear layer, optionally followed by SiLU, in the precision of its weights.

    On a CPU oneDNN computes it. Torch itself uses another library for float32, which takes 1.3
    times as long on an AMD EPYC.
    """
    x = x.to(affine.weight.dtype)
    if not affine.weight.is_mkldnn:
        x = linear(x, affine.weight, affine.bias)
        return silu(x, inplace=True) if then_silu else x
    rows, after = x.reshape(-1, x.shape[-1]), "swish" if then_silu else "none"  # that is SiLU
    rows = torch.ops.mkldnn._linear_pointwise(rows, *affine, after, [], "")
    return rows.view(*x.shape[:-1], -1)


def _norm(x: Tensor, affine: Affine) -> Tensor:
    return layer_norm(x, x.shape[-1:], affine.weight, affine.bias, 1e-5)


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, HEAD_WIDTH)).transpose(1, 2)


def _transform(tokens: Tensor, context: Tensor, layer: Layer) -> Tensor:
    """The result of one layer for `tokens`, which are the first tokens of `context`."""
    projected = _linear(_norm(context, layer.norm1), layer.query_key_value)
    query, key, value = (_heads(part) for part in projected.split(CLIP_WIDTH, -1))
    query = query[:, :, : tokens.shape[1]]
    attended = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    tokens = tokens + _linear(attended, layer.out)
    wide = _linear(_norm(tokens, layer.norm2), layer.widen, then_silu=True)
    return tokens + _linear(wide, layer.narrow)


def crop_table(sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """What is scaled of images of (height, width), float64 (2, n, 5): columns, then rows.

    The numbers are the side of the image and those of clip_crop.Crop.
    """
    rows = []
    for height, width in sizes:
        across, down = clip_crop(width, height)
        rows.append([(width, *across), (height, *down)])
    table = np.array(rows, np.float64).swapaxes(0, 1)
    table[:, :, 1:3] = table[:, :, 1:3].astype(np.float32)  # start and end: Pillow's precision
    return table


def resized_for_clip(pixels: Tensor, crops: Tensor) -> Tensor:
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
