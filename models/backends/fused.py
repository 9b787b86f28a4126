"""The default backend: the forward passes of both models, written for inference."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from models.convolutions import choose_operations
from models.resnet import build_resnet, resnet_features
from models.vision_tower import build_vision_tower, clip_features


def load(
    arrays: dict[str, np.ndarray], clip: Path, device: torch.device, dtype: torch.dtype
) -> tuple[Callable[[torch.Tensor], tuple[torch.Tensor, ...]], Callable[..., torch.Tensor]]:
    """ResNet-50 and CLIP's image tower as functions of uint8 pixels (see embeddings.Models)."""
    operations = choose_operations(device, dtype)
    model = build_resnet(arrays, device, dtype)
    tower = build_vision_tower(clip / "model.safetensors", device, dtype)
    return partial(resnet_features, model, operations), partial(clip_features, tower)
