"""The original's way to compute, for comparison: one image at a time, batch norm as a layer.

Where Detectron2 and OpenAI's clip are installed, they are the original. Where they are not, the
functions here perform the same operations of torch in the same order, in the same time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional

from models import vision_tower as vit
from models.backends import original as original_backend
from models.resnet import PIXEL_MEANS
from weights.clip import CLIP_LAYERS, CLIP_WIDTH
from weights.resnet50 import (
    BATCH_NORM_EPSILON,
    BATCH_NORM_PARTS,
    RESNET_STAGES,
    read_resnet_weights,
)


class Original(NamedTuple):
    resnet: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
    clip: Callable[[torch.Tensor], torch.Tensor]
    name: str


def load(weights: Path, device: torch.device) -> Original:
    """Both models in float32, from uint8 pixels, red first: (n, height, width, 3)."""
    arrays, clip = read_resnet_weights(weights / "R-50.pkl"), weights / "clip-vit-base-patch32"
    with contextlib.suppress(click.ClickException):  # not installed
        functions = original_backend.load(arrays, clip, device, torch.float32)
        return Original(*functions, "Detectron2 and clip")
    resnet, tower = load_resnet(arrays, device), load_clip(clip / "model.safetensors", device)
    return Original(resnet, tower, "a stand-in for Detectron2 and clip")


def load_resnet(
    arrays: dict[str, np.ndarray], device: torch.device
) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
    """Float32, channels first, from uint8 (n, height, width, 3): res5 and res4 as unit vectors."""
    tensors = {name: torch.tensor(array, device=device) for name, array in arrays.items()}
    means = torch.tensor(PIXEL_MEANS[::-1], device=device)[:, None, None]

    def convolve(
        x: torch.Tensor, name: str, stride: int = 1, padding: int = 0, norm: str = ""
    ) -> torch.Tensor:
        x = functional.conv2d(x, tensors[name + "_w"], None, stride, padding)
        gamma, beta, mean, variance = (
            tensors[f"{norm or name}_bn_{part}"] for part in BATCH_NORM_PARTS
        )
        return functional.batch_norm(x, mean, variance, gamma, beta, eps=BATCH_NORM_EPSILON)

    def features(pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = pixels.permute(0, 3, 1, 2).flip(1).float().contiguous() - means
        x = functional.relu_(convolve(x, "conv1", 2, 3, "res_conv1"))
        x = functional.max_pool2d(x, 3, 2, 1)
        outputs = []
        for stage, (blocks, _) in enumerate(RESNET_STAGES, start=2):
            for block in range(blocks):
                name = f"res{stage}_{block}_branch"
                stride = 2 if block == 0 and stage > 2 else 1
                inner = functional.relu_(convolve(x, name + "2a", stride))
                inner = functional.relu_(convolve(inner, name + "2b", padding=1))
                inner = convolve(inner, name + "2c")
                inner += x if block else convolve(x, name + "1", stride)
                x = functional.relu_(inner)
            outputs.append(x)
        return tuple(functional.normalize(x.mean((2, 3))) for x in (outputs[3], outputs[2]))

    return features


def load_clip(path: Path, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Float32 from uint8 (n, 224, 224, 3), by torch's modules as OpenAI's clip uses them."""
    tensors = {name: tensor.float() for name, tensor in load_file(path, str(device)).items()}
    layers = [f"vision_model.encoder.layers.{index}." for index in range(CLIP_LAYERS)]
    embeddings = "vision_model.embeddings."
    positions = tensors[embeddings + "position_embedding.weight"]
    attentions = []
    for layer in layers:
        attention = torch.nn.MultiheadAttention(CLIP_WIDTH, vit.HEADS, device=device).eval()
        for part in ("weight", "bias"):
            three = [tensors[f"{layer}self_attn.{name}_proj.{part}"] for name in "qkv"]
            getattr(attention, f"in_proj_{part}").data = torch.cat(three)
            out = tensors[f"{layer}self_attn.out_proj.{part}"]
            getattr(attention.out_proj, part).data = out
        attentions.append(attention)
    means, deviations = (
        torch.tensor(values, device=device)[:, None, None]
        for values in (vit.PIXEL_MEANS, vit.PIXEL_DEVIATIONS)
    )

    def affine(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return tensors[name + ".weight"], tensors[name + ".bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], *affine(name))

    def features(pixels: torch.Tensor) -> torch.Tensor:
        x = (pixels.permute(0, 3, 1, 2).float().div(255) - means) / deviations
        kernel = tensors[embeddings + "patch_embedding.weight"]
        x = functional.conv2d(x, kernel, stride=vit.PATCH).flatten(2).transpose(1, 2)
        first = tensors[embeddings + "class_embedding"].expand(len(x), 1, -1)
        x = norm(torch.cat([first, x], 1) + positions, "vision_model.pre_layrnorm").transpose(0, 1)
        for layer, attention in zip(layers, attentions, strict=True):
            inner = norm(x, layer + "layer_norm1")
            x = x + attention(inner, inner, inner, need_weights=False)[0]
            inner = functional.linear(norm(x, layer + "layer_norm2"), *affine(layer + "mlp.fc1"))
            inner = inner * torch.sigmoid(vit.GELU_SCALE * inner)
            x = x + functional.linear(inner, *affine(layer + "mlp.fc2"))
        x = norm(x[0], "vision_model.post_layernorm")
        return functional.normalize(x @ tensors["visual_projection.weight"].T)

    return features
