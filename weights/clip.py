"""CLIP's weights: found in a directory or on the Hugging Face hub, and checked.

Also for weights of any model: their SHA-256, and the header of a safetensors file.
"""

import hashlib
import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from common.errors import WeightsError
from common.terminal import printable

CLIP_ID = "openai/clip-vit-base-patch32"
CLIP_FILES = ("config.json", "model.safetensors")
CLIP_WIDTH, CLIP_LAYERS, CLIP_DIMENSIONS = 768, 12, 512
CLIP_ACTIVATION = "quick_gelu"  # other ViT-B/32 of these shapes use gelu
SAFETENSORS_REVISION = "refs/pr/15"  # of CLIP_ID, which has no safetensors on its main branch
CLIP_CACHED = f"hf download {CLIP_ID} --revision {SAFETENSORS_REVISION}"
CLIP_DOWNLOAD = f"{CLIP_CACHED} --local-dir clip"  # then --clip_weights clip


def clip_shapes() -> dict[str, tuple[int, ...]]:
    """The names and shapes of ViT-B/32's image tower and projection in the hub's layout."""
    width, wide = CLIP_WIDTH, 4 * CLIP_WIDTH
    layer: dict[str, tuple[int, ...]] = {
        **{f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")},
        "mlp.fc1": (wide, width),
        "mlp.fc2": (width, wide),
        **{f"layer_norm{number}": (width,) for number in (1, 2)},
    }
    affine: dict[str, tuple[int, ...]] = {"pre_layrnorm": (width,), "post_layernorm": (width,)}
    for index in range(CLIP_LAYERS):
        affine |= {f"encoder.layers.{index}.{name}": shape for name, shape in layer.items()}
    return {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 32, 32),
        "vision_model.embeddings.position_embedding.weight": (50, width),
        "visual_projection.weight": (CLIP_DIMENSIONS, width),
        **{f"vision_model.{name}.weight": shape for name, shape in affine.items()},
        **{f"vision_model.{name}.bias": shape[:1] for name, shape in affine.items()},
    }


def check_clip_weights(id_or_dir: str) -> Path:
    """The local directory of the CLIP weights, downloaded from the hub if necessary.

    Only the headers are read. Text weights in the same file are allowed.

    Raises:
        WeightsError: the weights cannot be downloaded, are not safetensors, or are not the image
            tower of OpenAI's ViT-B/32.
    """
    require_clip(id_or_dir)
    directory = Path(id_or_dir).expanduser()
    if not directory.is_dir():
        directory = _download_clip(id_or_dir)
    missing = [name for name in CLIP_FILES if not (directory / name).is_file()]
    if missing:
        is_pickled = (directory / "pytorch_model.bin").exists()
        reason = " (pytorch_model.bin is a pickle that could run code)" if is_pickled else ""
        raise WeightsError(
            f"{printable(str(directory))} has no {' and no '.join(missing)}{reason}: name a "
            f"directory that `{CLIP_DOWNLOAD}` made, or the hub id {CLIP_ID}, with --clip_weights."
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
            f"{path} has the activation {activation!r} where OpenAI's ViT-B/32 has"
            f" {CLIP_ACTIVATION!r}: the server's text encoder matches only {CLIP_ID}."
        )


def _check_clip_header(path: Path) -> None:
    header = safetensors_header(path)
    for name, shape in clip_shapes().items():
        if name not in header:
            raise _clip_error(path, f"has no tensor {name}")
        found, kind = header[name]
        if found != list(shape):
            raise _clip_error(path, f"has {name} of shape {found} instead of {shape}")
        if kind not in ("F32", "F16", "BF16"):
            raise _clip_error(path, f"has {name} as {kind} instead of F32")


def _clip_error(path: Path, problem: str) -> WeightsError:
    return WeightsError(
        f"{path} {problem}, so it is not {CLIP_ID}: get that with `{CLIP_DOWNLOAD}`."
    )


def require_clip(id_or_dir: str) -> None:
    """Raise WeightsError if this is neither a directory nor of the form of a hub id."""
    path, shown = Path(id_or_dir).expanduser(), printable(id_or_dir)
    if path.is_file():
        advice = f"get the directory with `{CLIP_DOWNLOAD}`"
        if path.name in CLIP_FILES:
            advice = f"name its directory, {printable(str(path.parent))}"
        elif path.suffix == ".pkl":
            advice = f"a .pkl file goes to --resnet_weights; {advice}"
        raise WeightsError(f"--clip_weights {shown} is a file, not a directory: {advice}.")
    name = id_or_dir.partition("@")[0]
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith(".")
    if not is_hub_id and not path.is_dir():
        raise WeightsError(
            f"The directory of CLIP weights {shown!r} does not exist: correct "
            f"--clip_weights, or leave it out for {CLIP_ID}."
        )


def _download_clip(hub_id: str) -> Path:
    """The directory of a hub id (or ID@REVISION) in the local cache, downloaded if necessary."""
    name, _, revision = hub_id.partition("@")
    revisions = ["main", SAFETENSORS_REVISION] if hub_id == CLIP_ID else [revision or "main"]
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
    """The directory of one revision; None if it is not in the cache (or not on the hub)."""
    from huggingface_hub import errors, snapshot_download  # half a second, only for downloads

    try:
        directory = snapshot_download(
            name, revision=revision, allow_patterns=list(CLIP_FILES), local_files_only=local_only
        )
    except errors.RevisionNotFoundError:
        return None
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise WeightsError(
            f"The hub has no public model {name!r}: correct --clip_weights, or leave it out for "
            f"{CLIP_ID}."
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        if local_only and isinstance(error, errors.LocalEntryNotFoundError):
            return None
        advice = (
            f"leave out --clip_weights for {CLIP_ID}, the only model that Forager searches with"
        )
        if name == CLIP_ID:
            advice = (
                f"copy {' and '.join(CLIP_FILES)} from a machine that can, such as with "
                f"`{CLIP_DOWNLOAD}`, and name their directory with --clip_weights"
            )
        raise WeightsError(
            f"The hub cannot be reached for the CLIP weights {name}: {advice}."
        ) from error
    return Path(directory)


def digest(path: Path) -> str:
    """The SHA-256 of a weights file, or of model.safetensors in a directory, in hexadecimal."""
    hashed, block = hashlib.sha256(), memoryview(bytearray(1 << 24))
    with (path / "model.safetensors" if path.is_dir() else path).open("rb", 0) as file:
        while size := file.readinto(block):
            hashed.update(block[:size])
    return hashed.hexdigest()


def safetensors_header(path: Path) -> dict[str, tuple[list[int], str]]:
    """{name: (shape, type)} of the tensors in a safetensors file, which are not read.

    Raises:
        WeightsError: the file cannot be read, is not a safetensors file, or not all of it is there.
    """
    try:
        with safe_open(path, framework="np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (part.get_shape(), part.get_dtype()) for name, part in parts.items()}
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error}).") from error
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is not a safetensors file, or is damaged ({error}): get CLIP's "
            f"with `{CLIP_DOWNLOAD}`."
        ) from error
