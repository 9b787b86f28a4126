"""The forward pass of the image tower of OpenAI's ViT-B/32, written for inference."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch.nn.functional import layer_norm, linear, normalize, scaled_dot_product_attention, silu

from models.convolutions import REFUSALS, TOLERANCE
from weights.clip import CLIP_LAYERS, CLIP_WIDTH, clip_shapes

HEADS, HEAD_WIDTH = 12, 64
PATCH = 32  # pixels
GRID = 7  # patches along a side of 224 pixels
PIXEL_MEANS = (0.48145466, 0.4578275, 0.40821073)
PIXEL_DEVIATIONS = (0.26862954, 0.26130258, 0.27577711)
GELU_SCALE = 1.702  # "quick" GELU: x * sigmoid(1.702 x), which is SiLU(1.702 x) / 1.702


class Affine(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor


class Layer(NamedTuple):
    norm1: Affine
    query_key_value: Affine
    out: Affine
    norm2: Affine
    widen: Affine  # multiplied by GELU_SCALE, and `narrow` divided by it: so SiLU is between them
    narrow: Affine


class VisionTower(NamedTuple):
    pixel_means: torch.Tensor
    pixel_deviations: torch.Tensor
    patches: Affine  # (768, 3072): rows of a patch, then columns, then channels
    first_token: torch.Tensor  # (1, 768): class embedding with its position
    positions: torch.Tensor  # (49, 768)
    norm_before: Affine
    layers: list[Layer]
    norm_after: Affine
    projection: torch.Tensor


def build_vision_tower(path: Path, device: torch.device, dtype: torch.dtype) -> VisionTower:
    """The tower from model.safetensors. Other tensors (the text tower) are not read."""
    with_onednn = device.type == "cpu" and onednn_linear_agrees(dtype)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in clip_shapes()}

    def norm(name: str) -> Affine:
        return Affine(*(tensors[f"{name}.{part}"].to(device) for part in ("weight", "bias")))

    def joined(names: tuple[str, ...], part: str, scale: float) -> torch.Tensor:
        several = [tensors[f"{name}.{part}"] for name in names]
        one = torch.cat(several) if several[1:] else several[0]
        return (one if scale == 1 else one * scale).to(device, dtype)

    def affine(*names: str, scale_weight: float = 1, scale_bias: float = 1) -> Affine:
        weight = joined(names, "weight", scale_weight)
        if with_onednn:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight)  # as oneDNN wants it
        return Affine(weight, joined(names, "bias", scale_bias))

    layers = []
    for index in range(CLIP_LAYERS):
        layer = f"vision_model.encoder.layers.{index}."
        attention = layer + "self_attn."
        layers.append(
            Layer(
                norm(layer + "layer_norm1"),
                affine(*(attention + name for name in ("q_proj", "k_proj", "v_proj"))),
                affine(attention + "out_proj"),
                norm(layer + "layer_norm2"),
                affine(layer + "mlp.fc1", scale_weight=GELU_SCALE, scale_bias=GELU_SCALE),
                affine(layer + "mlp.fc2", scale_weight=1 / GELU_SCALE),
            )
        )
    embeddings = "vision_model.embeddings."
    positions = tensors[embeddings + "position_embedding.weight"]
    patches = tensors[embeddings + "patch_embedding.weight"].permute(0, 2, 3, 1)
    return VisionTower(
        torch.tensor(PIXEL_MEANS, device=device),
        torch.tensor(PIXEL_DEVIATIONS, device=device),
        Affine(
            patches.reshape(CLIP_WIDTH, -1).to(device, dtype),
            torch.zeros(CLIP_WIDTH, device=device, dtype=dtype),
        ),
        (tensors[embeddings + "class_embedding"] + positions[0]).to(device)[None],
        positions[1:].to(device),
        norm("vision_model.pre_layrnorm"),
        layers,
        norm("vision_model.post_layernorm"),
        tensors["visual_projection.weight"].to(device),
    )


def clip_features(tower: VisionTower, pixels: torch.Tensor) -> torch.Tensor:
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


def _linear(x: torch.Tensor, affine: Affine, then_silu: bool = False) -> torch.Tensor:
    """A linear layer, optionally followed by SiLU, in the precision of its weights.

    On a CPU oneDNN computes it. Torch itself uses another library for float32, which takes 1.3
    times as long on an AMD EPYC.
    """
    x = x.to(affine.weight.dtype)
    if not affine.weight.is_mkldnn:
        x = linear(x, affine.weight, affine.bias)
        return silu(x, inplace=True) if then_silu else x
    rows = torch.ops.mkldnn._linear_pointwise(
        x.reshape(-1, x.shape[-1]),
        affine.weight,
        affine.bias,
        "swish" if then_silu else "none",  # oneDNN's name for SiLU
        [],
        "",
    )
    return rows.view(*x.shape[:-1], -1)


def _norm(x: torch.Tensor, affine: Affine) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:], affine.weight, affine.bias, 1e-5)


def _heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (HEADS, HEAD_WIDTH)).transpose(1, 2)


def _transform(tokens: torch.Tensor, context: torch.Tensor, layer: Layer) -> torch.Tensor:
    """The result of one layer for `tokens`, which are the first tokens of `context`."""
    projected = _linear(_norm(context, layer.norm1), layer.query_key_value)
    query, key, value = (_heads(part) for part in projected.split(CLIP_WIDTH, -1))
    query = query[:, :, : tokens.shape[1]]
    attended = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    tokens = tokens + _linear(attended, layer.out)
    wide = _linear(_norm(tokens, layer.norm2), layer.widen, then_silu=True)
    return tokens + _linear(wide, layer.narrow)
