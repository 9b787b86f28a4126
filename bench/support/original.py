"""The original's way to compute, for comparison: one image at a time, batch norm as a layer.

It is Detectron2 and OpenAI's clip where they are installed. Elsewhere it is transformers' modules
as they come: the same operations of torch in the same order, the same numbers to the bit and the
same time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open

from common.errors import IngestError
from models import backends
from weights.clip import CLIP_ACTIVATION, CLIP_DIMENSIONS, CLIP_LAYERS, CLIP_WIDTH, clip_shapes
from weights.resnet50 import RESNET_STAGES, read_resnet_weights

MODULES = {"1": "shortcut", "2a": "layer.0", "2b": "layer.1", "2c": "layer.2"}
PARTS = {"w": "convolution.weight", "gamma": "normalization.weight", "beta": "normalization.bias"}


class Original(NamedTuple):
    """Both models in float32, from uint8 (n, height, width, 3), red, green, blue."""

    resnet: backends.ResNetFunction
    clip: Callable[[torch.Tensor], torch.Tensor]
    name: str


def load(weights: Path, device: torch.device) -> Original:
    """The original's models, and what they are made of."""
    arrays, clip = read_resnet_weights(weights / "R-50.pkl"), weights / "clip-vit-base-patch32"
    try:
        models = backends.load_original(arrays, clip, device, torch.float32)
        name = "Detectron2 and clip"
    except IngestError:  # not installed
        models = transformers_models(arrays, clip / "model.safetensors", device)
        name = "transformers' modules, in the place of Detectron2 and clip"
    return Original(models.resnet, models.clip, name)


def transformers_models(
    arrays: dict[str, np.ndarray], clip: Path, device: torch.device
) -> backends.Models:
    """Both models as transformers' modules, in float32."""
    import transformers

    config = transformers.ResNetConfig(
        embedding_size=64,
        hidden_sizes=[4 * middle for _, middle in RESNET_STAGES],
        depths=[blocks for blocks, _ in RESNET_STAGES],
        layer_type="bottleneck",
        downsample_in_bottleneck=True,
    )
    resnet = transformers.ResNetModel(config).eval()
    named = {_name(name): torch.tensor(arrays[name]) for name in arrays if "fc1000" not in name}
    resnet.load_state_dict(named, strict=False)  # batch norms count batches too
    resnet.to(device)
    clip_config = transformers.CLIPVisionConfig(
        hidden_size=CLIP_WIDTH,
        intermediate_size=4 * CLIP_WIDTH,
        num_hidden_layers=CLIP_LAYERS,
        num_attention_heads=CLIP_WIDTH // 64,
        projection_dim=CLIP_DIMENSIONS,
        image_size=224,
        patch_size=32,
        hidden_act=CLIP_ACTIVATION,
    )
    tower = transformers.CLIPVisionModelWithProjection(clip_config).eval()
    with safe_open(clip, framework="pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in clip_shapes()}
    tower.load_state_dict(tensors, strict=False)
    tower.to(device)

    def backbone(x: torch.Tensor) -> dict[str, torch.Tensor]:
        *_, res4, res5 = resnet(x, output_hidden_states=True).hidden_states
        return {"res4": res4, "res5": res5}

    return backends.as_functions(
        backbone, lambda x: tower(x).image_embeds, arrays, device, torch.float32
    )


def _name(name: str) -> str:
    """What transformers' ResNetModel calls an array of R-50.pkl."""
    found = re.fullmatch(r"(?:res_)?(?:conv1|res(\d)_(\d)_branch(\w+?))_(?:bn_)?(\w+)", name)
    assert found, name
    stage, block, branch, part = found.groups()
    module = "embedder.embedder"
    if stage:
        module = f"encoder.stages.{int(stage) - 2}.layers.{block}.{MODULES[branch]}"
    return f"{module}.{PARTS.get(part, f'normalization.{part}')}"
