#!/usr/bin/env python3
"""Write seeded random weights in the two published formats, for tests without a download.

    python testing/make_weights.py OUT_DIR

OUT_DIR/R-50.pkl
    The layout of Detectron2's ImageNetPretrained/MSRA/R-50.pkl: one pickled dict of float32 arrays
    under their Caffe2 names, fc1000 and the unused conv1_b included.
OUT_DIR/clip-vit-base-patch32/
    The layout of the hub's openai/clip-vit-base-patch32: config.json and model.safetensors, the
    vision tower and its projection only.

The same numbers on every machine: they come from numpy's PCG64 alone. CLIP's are rounded to float16
values, as the published ones are. The embeddings in tests/reference/expected/ were computed from
exactly these weights.
"""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

RESNET_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))  # blocks, bottleneck channels


def resnet50(rng: np.random.Generator) -> dict[str, np.ndarray]:
    blobs: dict[str, np.ndarray] = {}

    def conv(name: str, out: int, inp: int, size: int, gain: float = 1.0) -> None:
        scale = gain * np.sqrt(2 / (inp * size * size))
        blobs[name + "_w"] = (rng.standard_normal((out, inp, size, size)) * scale).astype(
            np.float32
        )

    def norm(name: str, channels: int) -> None:
        blobs[name + "_bn_gamma"] = rng.uniform(0.5, 1.5, channels).astype(np.float32)
        blobs[name + "_bn_beta"] = (rng.standard_normal(channels) * 0.1).astype(np.float32)
        blobs[name + "_bn_running_mean"] = (rng.standard_normal(channels) * 0.1).astype(np.float32)
        blobs[name + "_bn_running_var"] = rng.uniform(0.5, 2, channels).astype(np.float32)

    conv("conv1", 64, 3, 7, gain=1 / 60)  # pixels span -120..150
    blobs["conv1_b"] = (rng.standard_normal(64) * 0.1).astype(
        np.float32
    )  # in the file, read by no one
    norm("res_conv1", 64)
    channels = 64
    for stage, (blocks, middle) in enumerate(RESNET_STAGES, start=2):
        for block in range(blocks):
            prefix = f"res{stage}_{block}_branch"
            if block == 0:
                conv(prefix + "1", 4 * middle, channels, 1)
                norm(prefix + "1", 4 * middle)
            for branch, out, inp, size, gain in (
                ("2a", middle, channels, 1, 1.0),
                ("2b", middle, middle, 3, 1.0),
                ("2c", 4 * middle, middle, 1, 0.3),
            ):
                conv(prefix + branch, out, inp, size, gain)
                norm(prefix + branch, out)
            channels = 4 * middle
    blobs["fc1000_w"] = (rng.standard_normal((1000, 2048)) * 0.01).astype(np.float32)
    blobs["fc1000_b"] = (rng.standard_normal(1000) * 0.01).astype(np.float32)
    return blobs


def clip_vision(
    rng: np.random.Generator, width: int = 768, layers: int = 12, out: int = 512
) -> dict[str, np.ndarray]:
    def normal(*shape: int, std: float) -> np.ndarray:
        return (rng.standard_normal(shape) * std).astype(np.float16).astype(np.float32)

    def layer_norm(name: str) -> dict[str, np.ndarray]:
        return {
            name + ".weight": rng.uniform(0.8, 1.2, width).astype(np.float16).astype(np.float32),
            name + ".bias": normal(width, std=0.05),
        }

    arrays = {
        "vision_model.embeddings.class_embedding": normal(width, std=width**-0.5),
        "vision_model.embeddings.patch_embedding.weight": normal(width, 3, 32, 32, std=0.02),
        "vision_model.embeddings.position_embedding.weight": normal(50, width, std=width**-0.5),
        "visual_projection.weight": normal(out, width, std=width**-0.5),
        **layer_norm("vision_model.pre_layrnorm"),
        **layer_norm("vision_model.post_layernorm"),
    }
    for index in range(layers):
        layer = f"vision_model.encoder.layers.{index}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            arrays[layer + f"self_attn.{name}.weight"] = normal(width, width, std=width**-0.5)
            arrays[layer + f"self_attn.{name}.bias"] = normal(width, std=0.02)
        arrays[layer + "mlp.fc1.weight"] = normal(4 * width, width, std=(2 * width) ** -0.5)
        arrays[layer + "mlp.fc1.bias"] = normal(4 * width, std=0.02)
        arrays[layer + "mlp.fc2.weight"] = normal(
            width, 4 * width, std=width**-0.5 * (2 * layers) ** -0.5
        )
        arrays[layer + "mlp.fc2.bias"] = normal(width, std=0.02)
        arrays |= layer_norm(layer + "layer_norm1") | layer_norm(layer + "layer_norm2")
    return arrays


CLIP_CONFIG = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "model_type": "clip_vision_model",
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "image_size": 224,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "patch_size": 32,
    "projection_dim": 512,
}


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "R-50.pkl", "wb") as file:
        pickle.dump(resnet50(np.random.default_rng(50)), file, protocol=2)
    clip = out / "clip-vit-base-patch32"
    clip.mkdir(exist_ok=True)
    (clip / "config.json").write_text(json.dumps(CLIP_CONFIG, indent=2) + "\n")
    save_file(
        clip_vision(np.random.default_rng(32)),
        clip / "model.safetensors",
        metadata={"format": "pt"},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
