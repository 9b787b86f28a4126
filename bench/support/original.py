"""The original's way to compute, for comparison: one image at a time, batch norm as a layer.

It is Detectron2 and OpenAI's clip where they are installed. Elsewhere it is transformers' modules
as they come: the same operations of torch in the same order, the same numbers to the bit and the
same time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from common.errors import IngestError
from models.backends import original, transformers
from models.pair import ResNetFunction
from weights.resnet50 import read_resnet_weights


class Original(NamedTuple):
    """Both models in float32, from uint8 (n, height, width, 3), red, green, blue."""

    resnet: ResNetFunction
    clip: Callable[[torch.Tensor], torch.Tensor]
    name: str


def load(weights: Path, device: torch.device) -> Original:
    """The original's models, and what they are made of."""
    arrays, clip = read_resnet_weights(weights / "R-50.pkl"), weights / "clip-vit-base-patch32"
    try:
        models = original.load(arrays, clip, device, torch.float32)
        return Original(models.resnet, models.clip, "Detectron2 and clip")
    except IngestError:  # not installed
        model = transformers.resnet(arrays, fold=False).to(device)
        tower = transformers.vision_tower(clip / "model.safetensors").to(device)

    def backbone(x: torch.Tensor) -> dict[str, torch.Tensor]:
        *_, res4, res5 = model(x, output_hidden_states=True).hidden_states
        return {"res4": res4, "res5": res5}

    models = original.as_functions(
        backbone, lambda x: tower(x).image_embeds, arrays, device, torch.float32
    )
    return Original(
        models.resnet, models.clip, "transformers' modules, in the place of Detectron2 and clip"
    )
