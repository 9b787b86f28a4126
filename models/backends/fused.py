"""The default backend: both models' forward passes written out for inference."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from models.convolutions import choose_operations
from models.layouts import PackedResNet, Size
from models.resnet import build_resnet, resnet_features
from models.vision_tower import build_vision_tower, clip_features


def load(
    arrays: dict[str, np.ndarray], clip: Path, device: torch.device, dtype: torch.dtype
) -> tuple[Callable[[torch.Tensor], tuple[torch.Tensor, ...]], Callable[..., torch.Tensor]]:
    """ResNet-50 and CLIP's image tower as functions of uint8 pixels (see embeddings.Models)."""
    operations = choose_operations(device, dtype)
    model = build_resnet(arrays, device, dtype)
    tower = build_vision_tower(clip / "model.safetensors", device, dtype)
    if device.type == "cuda":
        return partial(resnet_features, model, operations), partial(clip_features, tower)
    packed = PackedResNet(model, operations)

    def features(pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Image by image: a batch is no faster on a CPU, and so any batch gives the same bits."""
        laid_out = packed.for_size(Size(*pixels.shape[1:3]))
        rows = [resnet_features(laid_out, operations, image[None]) for image in pixels]
        return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))

    return features, partial(clip_features, tower)
