"""The backend `original`: the same weights in Detectron2 and OpenAI's clip, where installed.

Both run as they come, for comparison: batch norm as a layer, channels first.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from common.errors import IngestError
from models.pair import Models, Tensors
from models.resnet import PIXEL_MEANS
from models.vision_tower import PIXEL_DEVIATIONS
from models.vision_tower import PIXEL_MEANS as CLIP_MEANS
from weights.clip import CLIP_DIMENSIONS, CLIP_LAYERS, CLIP_WIDTH, clip_shapes

INSTALL_COMMANDS = (
    "`pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2`"
    " and `pip install git+https://github.com/openai/CLIP`"
)
NORM_PARTS = {
    "bn_gamma": "norm.weight",
    "bn_beta": "norm.bias",
    "bn_running_mean": "norm.running_mean",
    "bn_running_var": "norm.running_var",
    "w": "weight",
}
BRANCHES = {"branch1": "shortcut", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}


def load(
    arrays: dict[str, np.ndarray], clip: Path, device: torch.device, dtype: torch.dtype
) -> Models:
    """ResNet-50 and CLIP's image tower.

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
    tower = VisionTransformer(
        224, 32, CLIP_WIDTH, CLIP_LAYERS, CLIP_WIDTH // 64, CLIP_DIMENSIONS
    ).eval()
    tower.load_state_dict(_openai_names(clip / "model.safetensors"))
    return as_functions(backbone.to(device, dtype), tower.to(device, dtype), arrays, device, dtype)


def as_functions(
    backbone: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    tower: Callable[[torch.Tensor], torch.Tensor],
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
    normalize = torch.nn.functional.normalize

    def resnet_features(pixels: torch.Tensor, sizes: torch.Tensor | None = None) -> Tensors:
        blue_first = pixels.permute(0, 3, 1, 2).flip(1).float().contiguous()
        outputs = backbone((blue_first - means).to(dtype))
        late, early = (outputs[name].float().mean((2, 3)) for name in ("res5", "res4"))
        classes = torch.addmm(classes_bias, late, classes_weight.T).argmax(1)
        return normalize(late), normalize(early), classes

    def clip_features(pixels: torch.Tensor) -> torch.Tensor:
        x = pixels.permute(0, 3, 1, 2).float().div(255)
        return normalize(tower(((x - clip_means) / deviations).to(dtype)).float())

    return Models(resnet_features, clip_features)


def _detectron2_names(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
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
        state[f"{prefix}.{NORM_PARTS[part]}"] = torch.tensor(array)
    return state


def _openai_names(path: Path) -> dict[str, torch.Tensor]:
    """The hub's tensors as the state of OpenAI's VisionTransformer."""
    with safe_open(path, framework="pt") as file:
        hub = {name: file.get_tensor(name).float() for name in clip_shapes()}
    embeddings = "vision_model.embeddings."
    state = {
        "class_embedding": hub[embeddings + "class_embedding"],
        "positional_embedding": hub[embeddings + "position_embedding.weight"],
        "conv1.weight": hub[embeddings + "patch_embedding.weight"],
        "proj": hub["visual_projection.weight"].T,
    }
    for part in ("weight", "bias"):
        state[f"ln_pre.{part}"] = hub[f"vision_model.pre_layrnorm.{part}"]
        state[f"ln_post.{part}"] = hub[f"vision_model.post_layernorm.{part}"]
        for index in range(CLIP_LAYERS):
            theirs = f"vision_model.encoder.layers.{index}."
            ours = f"transformer.resblocks.{index}."
            attention = [hub[f"{theirs}self_attn.{name}_proj.{part}"] for name in "qkv"]
            state[f"{ours}attn.in_proj_{part}"] = torch.cat(attention)
            state[f"{ours}attn.out_proj.{part}"] = hub[f"{theirs}self_attn.out_proj.{part}"]
            state[f"{ours}ln_1.{part}"] = hub[f"{theirs}layer_norm1.{part}"]
            state[f"{ours}ln_2.{part}"] = hub[f"{theirs}layer_norm2.{part}"]
            state[f"{ours}mlp.c_fc.{part}"] = hub[f"{theirs}mlp.fc1.{part}"]
            state[f"{ours}mlp.c_proj.{part}"] = hub[f"{theirs}mlp.fc2.{part}"]
    return state
