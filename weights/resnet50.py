"""ResNet-50's weights: R-50.pkl and its published variants as checked arrays."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import WeightsError
from common.terminal import printable
from weights.safe_pickle import UnsafePickleError, read_pickle

RESNET_URL = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl"
RESNET_FILE = "R-50.pkl"
RESNET_DOWNLOAD = f"curl -LO {RESNET_URL}"
RESNET_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))  # blocks and inner channels of res2 to res5
RESNET_CLASSES = 1000
BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_PARTS = ("gamma", "beta", "running_mean", "running_var")


def resnet_shapes() -> dict[str, tuple[int, ...]]:
    """The name and shape of each array in Detectron2's R-50.pkl: the canonical names."""
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
    """The arrays of any published copy under the canonical names, without the momenta.

    `bn_s` and `bn_b` are batch norm as scale and shift: gamma and beta with mean 0 and variance
    1 - eps, so that the denominator sqrt(var + eps) is exactly 1.
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


def require_resnet(path: Path) -> None:
    """Raise WeightsError if the file is not there."""
    shown = printable(str(path))
    if path.is_dir() or path.suffix == ".safetensors":
        kind = "directory" if path.is_dir() else "safetensors file"
        raise WeightsError(
            f"--resnet_weights {shown} is a {kind}, not R-50.pkl: CLIP's directory goes to "
            f"--clip_weights; get R-50.pkl with `{RESNET_DOWNLOAD}`."
        )
    if not path.is_file():
        given = "" if path.name == RESNET_FILE else " (or correct --resnet_weights)"
        raise WeightsError(f"{shown} is missing: get it with `{RESNET_DOWNLOAD}`{given}.")


def read_resnet_weights(path: Path) -> dict[str, np.ndarray]:
    """The arrays of R-50.pkl as float32 under the canonical names, each of the expected shape.

    Nothing in the file is executed.

    Raises:
        WeightsError: the file is missing, is not a pickle of arrays, or is not ResNet-50.
    """
    require_resnet(path)
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
