"""The backend `transformers`: both models as its modules, batch norm folded."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.pair import Models, Tensors
from models.resnet import PIXEL_MEANS
from models.vision_tower import PIXEL_DEVIATIONS
from models.vision_tower import PIXEL_MEANS as CLIP_MEANS
from weights.clip import CLIP_ACTIVATION, CLIP_DIMENSIONS, CLIP_LAYERS, CLIP_WIDTH, clip_shapes
from weights.resnet50 import BATCH_NORM_EPSILON, RESNET_STAGES


def load(
    arrays: dict[str, np.ndarray], clip: Path, device: torch.device, dtype: torch.dtype
) -> Models:
    """ResNet-50 and CLIP's image tower."""
    model = resnet(arrays, fold=True).to(device, dtype, memory_format=torch.channels_last)
    classes_weight = torch.tensor(arrays["fc1000_w"], device=device)
    classes_bias = torch.tensor(arrays["fc1000_b"], device=device)
    tower = vision_tower(clip / "model.safetensors").to(device, dtype)
    means, clip_means, deviations = (
        torch.tensor(values, device=device)
        for values in (PIXEL_MEANS, CLIP_MEANS, PIXEL_DEVIATIONS)
    )
    normalize = torch.nn.functional.normalize

    def resnet_features(pixels: torch.Tensor, sizes: torch.Tensor | None = None) -> Tensors:
        x = (pixels - means).flip(-1).to(dtype).permute(0, 3, 1, 2)
        states = model(x, output_hidden_states=True).hidden_states
        early, late = (state.mean((2, 3), dtype=torch.float32) for state in states[-2:])
        classes = torch.addmm(classes_bias, late, classes_weight.T).argmax(1)
        return normalize(late), normalize(early), classes

    def clip_features(pixels: torch.Tensor) -> torch.Tensor:
        x = ((pixels / 255 - clip_means) / deviations).to(dtype).permute(0, 3, 1, 2)
        return normalize(tower(x).image_embeds.float())

    return Models(resnet_features, clip_features)


def resnet(arrays: dict[str, np.ndarray], fold: bool) -> Any:
    """transformers' ResNetModel, each batch norm folded into its convolution or as a layer."""
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(
        embedding_size=64,
        hidden_sizes=[4 * middle for _, middle in RESNET_STAGES],
        depths=[blocks for blocks, _ in RESNET_STAGES],
        layer_type="bottleneck",
        downsample_in_bottleneck=True,
    )
    model = ResNetModel(config).eval()
    _fill(model.embedder.embedder, arrays, "conv1", "res_conv1", fold)
    for stage, (blocks, _) in enumerate(RESNET_STAGES, start=2):
        for block in range(blocks):
            layer = model.encoder.stages[stage - 2].layers[block]
            name = f"res{stage}_{block}_branch"
            if block == 0:
                _fill(layer.shortcut, arrays, name + "1", name + "1", fold)
            for part, branch in zip(layer.layer, ("2a", "2b", "2c"), strict=True):
                _fill(part, arrays, name + branch, name + branch, fold)
    return model


def _fill(
    module: Any, arrays: dict[str, np.ndarray], convolution: str, norm: str, fold: bool
) -> None:
    """Load one convolution with its batch norm."""
    module.convolution.weight.data = torch.tensor(arrays[convolution + "_w"])
    values = [torch.tensor(arrays[f"{norm}_bn_{part}"]) for part in ("gamma", "beta")]
    module.normalization.weight.data, module.normalization.bias.data = values
    module.normalization.running_mean = torch.tensor(arrays[norm + "_bn_running_mean"])
    module.normalization.running_var = torch.tensor(arrays[norm + "_bn_running_var"])
    module.normalization.eps = BATCH_NORM_EPSILON
    if fold:
        module.convolution = torch.nn.utils.fusion.fuse_conv_bn_eval(
            module.convolution, module.normalization
        )
        module.normalization = torch.nn.Identity()


def vision_tower(path: Path) -> torch.nn.Module:
    """transformers' CLIPVisionModelWithProjection with the weights of a safetensors file."""
    from safetensors import safe_open
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=CLIP_WIDTH,
        intermediate_size=4 * CLIP_WIDTH,
        num_hidden_layers=CLIP_LAYERS,
        num_attention_heads=CLIP_WIDTH // 64,
        projection_dim=CLIP_DIMENSIONS,
        image_size=224,
        patch_size=32,
        hidden_act=CLIP_ACTIVATION,
    )
    tower = CLIPVisionModelWithProjection(config).eval()
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in clip_shapes()}
    tower.load_state_dict(tensors, strict=False)
    return tower
