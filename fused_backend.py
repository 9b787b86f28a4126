"""The default backend: both models' forward passes written out for inference."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from convolutions import choose_operations
from resnet import build_resnet, resnet_features
from vit import build_vision_tower, clip_features
from weights import read_resnet_weights


def load(
    resnet: Path, clip: Path, device: torch.device, dtype: torch.dtype
) -> tuple[Callable[[torch.Tensor], tuple[torch.Tensor, ...]], Callable[..., torch.Tensor]]:
    """ResNet-50 and CLIP's image tower as functions of uint8 pixels (see embeddings.Models)."""
    operations = choose_operations(device, dtype)
    model = build_resnet(read_resnet_weights(resnet), operations, device, dtype)
    tower = build_vision_tower(clip / "model.safetensors", device, dtype)
    return partial(resnet_features, model, dtype=dtype), partial(clip_features, tower, dtype=dtype)
