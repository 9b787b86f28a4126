"""The weights of both models: where they are, whether they fit, and ResNet-50's as arrays."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import click
import numpy as np

from safe_pickle import UnsafePickleError, read_pickle

RESNET_URL = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl"
RESNET_DOWNLOAD = f"curl -LO {RESNET_URL}"
RESNET_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))  # blocks and inner channels of res2 to res5
RESNET_CLASSES = 1000
BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_PARTS = ("gamma", "beta", "running_mean", "running_var")

CLIP_ID = "openai/clip-vit-base-patch32"
CLIP_FILES = ("config.json", "model.safetensors")
CLIP_WIDTH, CLIP_LAYERS, CLIP_DIMENSIONS = 768, 12, 512
CLIP_ACTIVATION = "quick_gelu"  # other ViT-B/32 of these shapes use gelu
MAX_HEADER_BYTES = 10 << 20
# Where a hub repository has its safetensors on a branch only: the pull request that carries them.
SAFETENSORS_REVISIONS = {CLIP_ID: "refs/pr/15"}


class WeightsError(click.ClickException):
    """What is wrong with the weights, and what to do, in one sentence."""


def resnet_shapes() -> dict[str, tuple[int, ...]]:
    """The canonical names of R-50.pkl (spec.md section 5) and the shape of each array."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(convolution: str, norm: str, out: int, inputs: int, size: int) -> None:
        shapes[f"{convolution}_w"] = (out, inputs, size, size)
        shapes.update({f"{norm}_bn_{part}": (out,) for part in BATCH_NORM_PARTS})

    add("conv1", "res_conv1", 64, 3, 7)
    channels = 64
    for stage, (blocks, middle) in enumerate(RESNET_STAGES, start=2):
        for block in range(blocks):
            branch = f"res{stage}_{block}_branch"
            if block == 0:
                add(branch + "1", branch + "1", 4 * middle, channels, 1)
            add(branch + "2a", branch + "2a", middle, channels, 1)
            add(branch + "2b", branch + "2b", middle, middle, 3)
            add(branch + "2c", branch + "2c", 4 * middle, middle, 1)
            channels = 4 * middle
    shapes["fc1000_w"] = (RESNET_CLASSES, channels)
    shapes["fc1000_b"] = (RESNET_CLASSES,)
    return shapes


def canonical_resnet_names(blobs: dict[str, Any]) -> dict[str, Any]:
    """The blobs of any published copy under the canonical names; momenta are left out.

    `bn_s` and `bn_b` are batch norm as scale and shift: gamma and beta with mean 0 and variance
    1 - eps, which makes the denominator sqrt(var + eps) exactly 1.
    """
    named: dict[str, Any] = {}
    for key, value in blobs.items():
        if not isinstance(key, str) or key.endswith("_momentum"):
            continue
        name = re.sub(r"^pred_(?=[wb]$)", "fc1000_", key)
        name = re.sub(r"_bn_s$", "_bn_gamma", re.sub(r"_bn_b$", "_bn_beta", name))
        named[name] = value
        if key.endswith("_bn_s") and isinstance(value, np.ndarray):
            prefix = key.removesuffix("_bn_s")
            named.setdefault(f"{prefix}_bn_running_mean", np.zeros(value.shape, np.float32))
            variance = np.full(value.shape, 1 - BATCH_NORM_EPSILON, np.float32)
            named.setdefault(f"{prefix}_bn_running_var", variance)
    return named


def read_resnet_weights(path: Path) -> dict[str, np.ndarray]:
    """The arrays of R-50.pkl as float32 under the canonical names, each of the expected shape.

    Raises WeightsError where the file is missing, is not a pickle of arrays alone, or does not hold
    ResNet-50. Nothing in the file is executed.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is missing: get it with `{RESNET_DOWNLOAD}`.")
    try:
        content = read_pickle(path)
    except UnsafePickleError as error:
        raise _resnet_error(path, str(error)) from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}).") from error
    for wrapper in ("model", "blobs"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise _resnet_error(path, f"holds a {type(content).__name__}, not a dict of arrays")
    named = canonical_resnet_names(content)
    return {name: _checked(path, name, named, shape) for name, shape in resnet_shapes().items()}


def _checked(path: Path, name: str, arrays: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    array = arrays.get(name)
    if not isinstance(array, np.ndarray):
        raise _resnet_error(path, f"has no array {name}")
    if array.shape != shape:
        raise _resnet_error(path, f"has {name} of shape {array.shape} instead of {shape}")
    if array.dtype.kind != "f":
        raise _resnet_error(path, f"has {name} as {array.dtype} instead of float32")
    array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise _resnet_error(path, f"has NaN or infinity in {name}")
    if name.endswith("_running_var") and (array < 0).any():
        raise _resnet_error(path, f"has a negative variance in {name}")
    return array


def _resnet_error(path: Path, problem: str) -> WeightsError:
    return WeightsError(
        f"{path} {problem}, so it is not Detectron2's R-50.pkl: get it with `{RESNET_DOWNLOAD}`."
    )


def clip_shapes() -> dict[str, tuple[int, ...]]:
    """The names and shapes of ViT-B/32's image tower and projection in the hub's layout."""
    width, wide = CLIP_WIDTH, 4 * CLIP_WIDTH
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 32, 32),
        "vision_model.embeddings.position_embedding.weight": (50, width),
        "visual_projection.weight": (CLIP_DIMENSIONS, width),
    }

    def add(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    add("vision_model.pre_layrnorm", width)
    add("vision_model.post_layernorm", width)
    for index in range(CLIP_LAYERS):
        layer = f"vision_model.encoder.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            add(f"{layer}.self_attn.{name}", width, width)
        add(f"{layer}.mlp.fc1", wide, width)
        add(f"{layer}.mlp.fc2", width, wide)
        add(f"{layer}.layer_norm1", width)
        add(f"{layer}.layer_norm2", width)
    return shapes


def check_clip_weights(id_or_dir: str) -> Path:
    """The local directory of the CLIP weights, downloaded from the hub where it is not at hand.

    Only the headers are read. Raises WeightsError where the weights cannot be had, are not
    safetensors, or are not the image tower of OpenAI's ViT-B/32; text weights beside it are fine.
    """
    directory = Path(id_or_dir).expanduser()
    if not directory.is_dir():
        directory = _download_clip(id_or_dir)
    missing = [name for name in CLIP_FILES if not (directory / name).is_file()]
    if "model.safetensors" in missing and (directory / "pytorch_model.bin").exists():
        raise WeightsError(
            f"{directory} has CLIP as pytorch_model.bin only, a pickle that could run code: put"
            " model.safetensors beside it or name a directory that has it."
        )
    if missing:
        raise WeightsError(
            f"{directory} has no {' and no '.join(missing)}: name a directory in the hub's layout"
            f" or the hub id {CLIP_ID} with --clip_weights."
        )
    _check_clip_config(directory / "config.json")
    _check_clip_header(directory / "model.safetensors")
    return directory


def _check_clip_config(path: Path) -> None:
    try:
        config = json.loads(path.read_text("utf-8"))
        activation = config.get("vision_config", config).get("hidden_act", CLIP_ACTIVATION)
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path} is not a CLIP configuration ({error}).") from error
    if activation != CLIP_ACTIVATION:
        raise WeightsError(
            f"{path} says {activation!r} where OpenAI's ViT-B/32 has {CLIP_ACTIVATION!r}: the text"
            f" encoder of the server matches {CLIP_ID} only."
        )


def _check_clip_header(path: Path) -> None:
    header = _safetensors_header(path)
    for name, shape in clip_shapes().items():
        entry = header.get(name)
        if not isinstance(entry, dict):
            raise _clip_error(path, f"has no tensor {name}")
        if entry.get("shape") != list(shape):
            raise _clip_error(path, f"has {name} of shape {entry.get('shape')} instead of {shape}")
        if entry.get("dtype") not in ("F32", "F16", "BF16"):
            raise _clip_error(path, f"has {name} as {entry.get('dtype')} instead of F32")


def _safetensors_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: 8 bytes of length, then JSON (the format's README)."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if 8 + length <= size and length <= MAX_HEADER_BYTES else b""
        header = json.loads(text)
        end = max(entry["data_offsets"][1] for key, entry in header.items() if key[:2] != "__")
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise _clip_error(path, "is no safetensors file, or is damaged") from error
    if 8 + length + end != size:
        raise _clip_error(path, f"has {size:,} bytes where its header says {8 + length + end:,}")
    return header


def _clip_error(path: Path, problem: str) -> WeightsError:
    return WeightsError(f"{path} {problem}, so it is not {CLIP_ID}: download it again.")


def _download_clip(hub_id: str) -> Path:
    """The snapshot of a hub id (or ID@REVISION) in the hub's cache, fetched where it is not."""
    name, _, revision = hub_id.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise WeightsError(f"The directory of CLIP weights {hub_id!r} does not exist.")
    revisions = [revision or "main"]
    if not revision and name in SAFETENSORS_REVISIONS:
        revisions.append(SAFETENSORS_REVISIONS[name])
    for local_only in (True, False):
        for candidate in revisions:
            directory = _snapshot(name, candidate, local_only)
            if directory and all((directory / file).is_file() for file in CLIP_FILES):
                return directory
    raise WeightsError(
        f"The hub has no {' or no '.join(CLIP_FILES)} for {hub_id}: name a revision that has them"
        " with --clip_weights ID@REVISION, or a local directory."
    )


def _snapshot(name: str, revision: str, local_only: bool) -> Path | None:
    """The directory of one revision, or None where it is not in the cache (or not on the hub)."""
    from huggingface_hub import snapshot_download  # half a second, needed by few
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        directory = snapshot_download(
            name, revision=revision, allow_patterns=list(CLIP_FILES), local_files_only=local_only
        )
    except RevisionNotFoundError:
        return None
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise WeightsError(f"The hub has no public model {name!r}.") from error
    except LocalEntryNotFoundError as error:
        if local_only:
            return None
        raise _unreachable(name) from error
    except (HfHubHTTPError, OSError) as error:
        raise _unreachable(name) from error
    return Path(directory)


def _unreachable(name: str) -> WeightsError:
    return WeightsError(
        f"The hub cannot be reached for the CLIP weights {name}: copy {' and '.join(CLIP_FILES)}"
        " from a machine that can and name their directory with --clip_weights."
    )


def digest(path: Path) -> str:
    """The SHA-256 of a weights file, or of model.safetensors in a directory, in hexadecimal."""
    hashed, block = hashlib.sha256(), memoryview(bytearray(1 << 24))
    with (path / "model.safetensors" if path.is_dir() else path).open("rb", 0) as file:
        while size := file.readinto(block):
            hashed.update(block[:size])
    return hashed.hexdigest()
