"""Which implementation of both models computes: what --backend chooses from.

`fused` is built in (models/resnet.py, models/clip.py). `original` is for comparison: Detectron2 and
OpenAI's clip as they come, where they are installed, with batch norm as a layer, channels first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import normalize

from common.errors import IngestError
from models.clip import PIXEL_DEVIATIONS, build_vision_tower, clip_features
from models.clip import PIXEL_MEANS as CLIP_MEANS
from models.resnet import (
    PIXEL_MEANS,
    build_resnet,
    fused_operator,
    largest_activation,
    resnet_features,
    with_operator,
)
from weights.clip import CLIP_DIMENSIONS, CLIP_LAYERS, CLIP_WIDTH, clip_shapes

INSTALL_COMMANDS = (
    "`pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2`"
    " and `pip install git+https://github.com/openai/CLIP`"
)
PARTS = {"w": "weight", "bn_gamma": "norm.weight", "bn_beta": "norm.bias"}
BRANCHES = {"branch1": "shortcut", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}
LAYER_PARTS = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


class ResNetFunction(Protocol):
    def __call__(self, pixels: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """res5 (n, 2048), res4 (n, 1024), ImageNet classes (n,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Models:
    """Each function takes uint8 (n, height, width, 3) RGB pixels and returns unit vectors."""

    resnet: ResNetFunction
    clip: Callable[[Tensor], Tensor]  # (n, 512) of (n, 224, 224, 3)
    takes_canvases: bool = False  # resnet takes `sizes`, of images on larger canvases
    plain_kinds: tuple[str, ...] = ()  # convolutions for which the device's fused operator fails
    largest_activation: Callable[[Tensor], float] | None = None  # of ResNet, see models/resnet.py


def load_fused(
    arrays: dict[str, np.ndarray], clip: Path, device: torch.device, dtype: torch.dtype
) -> Models:
    """The forward passes that are written for inference."""
    plain = build_resnet(arrays, device, dtype)
    model, plain_kinds = with_operator(plain, fused_operator(device))
    tower = build_vision_tower(clip / "model.safetensors", device, dtype)
    return Models(
        resnet=partial(resnet_features, model),
        clip=partial(clip_features, tower),
        takes_canvases=True,
        plain_kinds=tuple(plain_kinds),
        largest_activation=partial(largest_activation, model),
    )


def load_original(
    arrays: dict[str, np.ndarray], clip: Path, device: torch.device, dtype: torch.dtype
) -> Models:
    """Detectron2's ResNet-50 and the image tower of OpenAI's clip.

    Raises:
        IngestError: a package is not installed, or another package has its name.
    """
    try:
        from clip.model import VisionTransformer
        from detectron2.config import get_cfg
        from detectron2.layers import ShapeSpec
        from detectron2.modeling.backbone import build_resnet_backbone
    except ImportError as error:
        raise IngestError(
            f"--backend original needs Detectron2 and OpenAI's clip ({error}): install them with"
            f" {INSTALL_COMMANDS}, or leave --backend out."
        ) from error
    config = get_cfg()
    config.MODEL.RESNETS.OUT_FEATURES = ["res4", "res5"]
    backbone = build_resnet_backbone(config, ShapeSpec(channels=3)).eval()
    backbone.load_state_dict(_detectron2_names(arrays))
    widths = CLIP_WIDTH, CLIP_LAYERS, CLIP_WIDTH // 64, CLIP_DIMENSIONS
    tower = VisionTransformer(224, 32, *widths).eval()
    tower.load_state_dict(_openai_names(clip / "model.safetensors"))
    return as_functions(backbone.to(device, dtype), tower.to(device, dtype), arrays, device, dtype)


def as_functions(
    backbone: Callable[[Tensor], dict[str, Tensor]],
    tower: Callable[[Tensor], Tensor],
    arrays: dict[str, np.ndarray],
    device: torch.device,
    dtype: torch.dtype,
) -> Models:
    """What is around the two networks: normalised pixels, means over space, unit vectors."""
    classes_weight = torch.tensor(arrays["fc1000_w"], device=device)
    classes_bias = torch.tensor(arrays["fc1000_b"], device=device)
    means, clip_means, deviations = (
        torch.tensor(values, device=device)[:, None, None]
        for values in (PIXEL_MEANS[::-1], CLIP_MEANS, PIXEL_DEVIATIONS)
    )

    def resnet(pixels: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        blue_first = pixels.permute(0, 3, 1, 2).flip(1).float().contiguous()
        outputs = backbone((blue_first - means).to(dtype))
        late, early = (outputs[name].float().mean((2, 3)) for name in ("res5", "res4"))
        classes = torch.addmm(classes_bias, late, classes_weight.T).argmax(1)
        return normalize(late), normalize(early), classes

    def tower_features(pixels: Tensor) -> Tensor:
        x = pixels.permute(0, 3, 1, 2).float().div(255)
        return normalize(tower(((x - clip_means) / deviations).to(dtype)).float())

    return Models(resnet=resnet, clip=tower_features)


def _detectron2_names(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """R-50.pkl's arrays as the state of Detectron2's backbone: res2_0_branch2a_w and so on."""
    state = {}
    for name, array in arrays.items():
        if name.startswith("fc1000"):
            continue
        layer = name.replace("res_conv1_", "conv1_", 1)
        if layer.startswith("conv1_"):
            prefix, part = "stem.conv1", layer.removeprefix("conv1_")
        else:
            stage, block, branch, part = layer.split("_", 3)
            prefix = f"{stage}.{block}.{BRANCHES[branch]}"
        part = PARTS.get(part, part.replace("bn_running", "norm.running"))
        state[f"{prefix}.{part}"] = torch.tensor(array)
    return state


def _openai_names(path: Path) -> dict[str, Tensor]:
    """The hub's tensors as the state of OpenAI's VisionTransformer."""
    with safe_open(path, framework="pt") as file:
        hub = {name: file.get_tensor(name).float() for name in clip_shapes()}
    state = {
        "class_embedding": hub["vision_model.embeddings.class_embedding"],
        "positional_embedding": hub["vision_model.embeddings.position_embedding.weight"],
        "conv1.weight": hub["vision_model.embeddings.patch_embedding.weight"],
        "proj": hub["visual_projection.weight"].T,
    }
    for part in ("weight", "bias"):
        state[f"ln_pre.{part}"] = hub[f"vision_model.pre_layrnorm.{part}"]
        state[f"ln_post.{part}"] = hub[f"vision_model.post_layernorm.{part}"]
        for index in range(CLIP_LAYERS):
            theirs = f"vision_model.encoder.layers.{index}"
            ours = f"transformer.resblocks.{index}"
            attention = [hub[f"{theirs}.self_attn.{name}_proj.{part}"] for name in "qkv"]
            state[f"{ours}.attn.in_proj_{part}"] = torch.cat(attention)
            for hubs, openais in LAYER_PARTS.items():
                state[f"{ours}.{openais}.{part}"] = hub[f"{theirs}.{hubs}.{part}"]
    return state


BACKENDS = {"fused": load_fused, "original": load_original}  # --backend
