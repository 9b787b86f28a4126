"""The default backend: the forward passes of both models, written for inference."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from models.convolutions import fused_operations
from models.pair import Models
from models.resnet import (
    build_resnet,
    largest_activation,
    resnet_features,
    with_fused_operations,
)
from models.vision_tower import build_vision_tower, clip_features


def load(
    arrays: dict[str, np.ndarray], clip: Path, device: torch.device, dtype: torch.dtype
) -> Models:
    """ResNet-50 and CLIP's image tower."""
    plain = build_resnet(arrays, device, dtype)
    model, plain_kinds = with_fused_operations(plain, fused_operations(device))
    tower = build_vision_tower(clip / "model.safetensors", device, dtype)
    return Models(
        partial(resnet_features, model),
        partial(clip_features, tower),
        takes_canvases=True,
        plain_kinds=tuple(plain_kinds),
        largest_activation=partial(largest_activation, model),
    )
