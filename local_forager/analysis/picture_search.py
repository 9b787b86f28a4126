"""A picture as the question: its vectors by the code of an ingest, on the CPU in float32."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.errors import ImageError, ShortageError, WeightsError
from common.options import RESNET_WEIGHTS
from common.terminal import printable
from engine.decode import Decoded, open_image, prepare
from local_forager.indexes.index import Index
from local_forager.indexes.vectors import in_order
from local_forager.types import PageError
from weights.clip import check_clip_weights, digest
from weights.resnet50 import read_resnet_weights, require_resnet

if TYPE_CHECKING:
    from models.clip import VisionTower
    from models.resnet import ResNet

_digest = functools.cache(digest)
MISSING = (
    "To search by a picture, local_forager needs --clip_weights DIRECTORY (for clip) or "
    "--resnet_weights R-50.pkl (for the others)."
)
RESNET_EMBEDDINGS = ("imagenet", "imagenet_early")  # in the order of what the model returns


@dataclass(frozen=True, kw_only=True)
class PictureWeights:
    """The weights to compute vectors with, and for each embedding why it cannot be computed."""

    resnet: Path
    clip: Path  # if there is none, `problems` says so
    problems: dict[str, str | None]

    def problem(self, by: str, index: Index | None = None) -> str | None:
        """Why this embedding cannot be computed, or not with the weights of the index, if so."""
        is_clip = by == "clip"
        option, path = ("clip_weights", self.clip) if is_clip else ("resnet_weights", self.resnet)
        made_with = index.metadata.get(f"{option}_sha256") if index else None
        if self.problems[by] or made_with is None or made_with == _digest(path):
            return self.problems[by]
        sentence = f"The {by} vectors of this dataset were made with other weights than"
        return f"{sentence} {printable(str(path))}: give those with --{option}."

    def check(self, by: str, index: Index | None = None) -> None:
        """Raise PageError if there is a problem."""
        if problem := self.problem(by, index):
            raise PageError(409, problem)

    def usable(self, index: Index | None = None) -> tuple[list[str], str]:
        """The embeddings by which a picture can be compared, with an index; without any, why."""
        problems = {by: self.problem(by, index) for by in self.problems}
        usable = [by for by, problem in problems.items() if not problem]
        return usable, "" if usable else " ".join(dict.fromkeys(filter(None, problems.values())))


def _problem(check: Callable[[Path], object], path: Path) -> str | None:
    """Why these weights cannot be used, if so."""
    try:
        check(path)
    except WeightsError as error:
        return error.message
    return None


def find_weights(resnet: Path | None, clip: Path | None) -> PictureWeights:
    """The weights in these places; of ResNet-50 by default where an ingest looks for them."""
    of_resnet = _problem(require_resnet, resnet or RESNET_WEIGHTS)
    if of_resnet and resnet is None:
        of_resnet = MISSING
    of_clip = _problem(lambda path: check_clip_weights(str(path)), clip) if clip else MISSING
    problems = {"clip": of_clip, **dict.fromkeys(RESNET_EMBEDDINGS, of_resnet)}
    return PictureWeights(resnet=resnet or RESNET_WEIGHTS, clip=clip or Path(), problems=problems)


def read_picture(data: bytes, what: str = "The picture") -> Decoded:
    """The picture in these bytes, as an ingest decodes it; PageError if that is not possible."""
    try:
        return prepare(open_image(data))
    except ImageError as error:
        raise PageError(400, f"{what} cannot be used: {error}.") from error
    except ShortageError as error:
        raise PageError(503, error.message) from error


@functools.cache
def _clip(directory: Path) -> "VisionTower":
    import torch

    from models.clip import build_vision_tower

    return build_vision_tower(directory / "model.safetensors", torch.device("cpu"), torch.float32)


@functools.cache
def _resnet(path: Path) -> "ResNet":
    import torch

    from models.resnet import build_resnet, fused_operator, with_operator

    cpu = torch.device("cpu")
    plain = build_resnet(read_resnet_weights(path), cpu, torch.float32)
    return with_operator(plain, fused_operator(cpu))[0]


def picture_vectors(
    weights: PictureWeights, picture: Decoded, wanted: list[str]
) -> dict[str, np.ndarray]:
    """Unit vectors of a picture, float32, by embedding. Called from one thread at a time.

    The models are loaded when they are first used.

    Raises:
        PageError: the weights cannot be read, or the picture is too large for the memory.
    """
    import torch

    from models.clip import clip_features
    from models.devices import pixels_that_fit
    from models.resnet import resnet_features

    fitting, size = pixels_that_fit(torch.device("cpu"), torch.float32), picture.pixels.size // 3
    if size > fitting:
        fits = f"{size / 1e6:,.1f} megapixels; at most {fitting / 1e6:,.1f} fit in memory here"
        raise PageError(400, f"The picture cannot be used: it has {fits}.")
    found: dict[str, np.ndarray] = {}
    try:
        with torch.inference_mode():
            if "clip" in wanted:
                inputs = torch.tensor(picture.clip_input)[None]
                found["clip"] = clip_features(_clip(weights.clip), inputs)[0].numpy()
            if set(wanted) & set(RESNET_EMBEDDINGS):
                pixels = torch.tensor(picture.pixels)[None]
                rows = resnet_features(_resnet(weights.resnet), pixels)
                for by, row in zip(RESNET_EMBEDDINGS, rows, strict=False):
                    found[by] = row[0].numpy()
    except WeightsError as error:
        raise PageError(409, error.message) from error
    return found


def picture_of_file(path: Path) -> Decoded:
    """The picture in a file. Raises PageError."""
    where = printable(str(path))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PageError(400, f"{where} cannot be read ({error.strerror}).") from error
    return read_picture(data, where)


def nearest_to(
    weights: PictureWeights, picture: Decoded, index: Index, rows: list[int], by: str
) -> list[int]:
    """The rows of images that did not fail, nearest to the picture first. Raises PageError."""
    weights.check(by, index)
    similarity = index.embeddings[by].similarities(picture_vectors(weights, picture, [by])[by])
    good = np.array([row for row in rows if not index.failed[row]], np.int64)
    nearest: list[int] = in_order(good, -similarity).tolist()
    return nearest
