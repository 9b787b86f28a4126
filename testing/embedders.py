"""Stand-ins for both models: for tests and benchmarks of everything around the numbers."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import Findings
from common.precision import Precision
from dataset.arrays import DIMENSIONS, Embedding
from engine.loading import ModelLoader, ModelOptions
from weights.clip import digest

CLIP_SHAPE = (224, 224, 3)
CONSTANT = Embedding([np.full(d, d**-0.5, np.float32) for d in DIMENSIONS.values()], 0)
NOT_NUMBERS = Embedding([np.full(d, np.nan, np.float32) for d in DIMENSIONS.values()], 0)


def embedding_of(pixels: np.ndarray) -> Embedding:
    """Unit vectors and a class that look random and depend on the pixels alone."""
    rng = np.random.default_rng(zlib.crc32(np.ascontiguousarray(pixels).data))
    rows = [rng.standard_normal(d).astype(np.float32) for d in DIMENSIONS.values()]
    return Embedding([row / np.linalg.norm(row) for row in rows], int(rng.integers(1000)))


class FakeEmbedder:
    """Gives the embeddings of `embedding_of`; `batches` has the number of images of each batch."""

    device, precision = "cpu", Precision.FLOAT32
    max_pixels = waiting_pixels = 100_000_000
    bfloat16_would_be_faster = False
    remarks: Sequence[str] = ()

    def __init__(
        self,
        *,
        seconds: float = 0.0,
        constant: bool = False,
        nan_size: tuple[int, int] | None = None,
        workers: int = 1,
        batch_size: int = 4,
        makes_clip_inputs: bool = False,
    ) -> None:
        """
        Args:
            seconds: how long an image takes; it sleeps.
            constant: the same vectors for every image, which costs no time.
            nan_size: (width, height) of the images whose vectors are NaN.
            workers, batch_size, makes_clip_inputs: as of embeddings.Embedder.
        """
        self._seconds, self._constant, self._nan_size = seconds, constant, nan_size
        self._batch_size = batch_size
        self.workers, self.makes_clip_inputs = workers, makes_clip_inputs
        self.batches: list[int] = []

    def exceptions(self) -> Sequence[str]:
        return ()

    def group(self, height: int, width: int) -> Hashable:
        return height, width

    def batch_size(self, height: int, width: int) -> int:
        return self._batch_size

    def start(
        self, images: Sequence[np.ndarray], clip_inputs: Sequence[np.ndarray | None]
    ) -> Callable[[], list[Embedding]]:
        if len({self.group(*image.shape[:2]) for image in images}) != 1:
            raise ValueError("a batch has images of different groups")
        if any(given is not None and given.shape != CLIP_SHAPE for given in clip_inputs):
            raise ValueError(f"an input of CLIP is not of the shape {CLIP_SHAPE}")
        self.batches.append(len(images))
        return partial(self._finish, images)

    def _finish(self, images: Sequence[np.ndarray]) -> list[Embedding]:
        time.sleep(self._seconds * len(images))
        return [self._embedding(pixels) for pixels in images]

    def _embedding(self, pixels: np.ndarray) -> Embedding:
        if self._constant:
            return CONSTANT
        if self._nan_size == (pixels.shape[1], pixels.shape[0]):
            return NOT_NUMBERS
        return embedding_of(pixels)


class LoaderWithoutModels(ModelLoader):
    """As ModelLoader, for an embedder that needs no weights: any two files pass for weights."""

    def __init__(self, options: ModelOptions, embedder: Any = None) -> None:
        super().__init__(options)
        self._embedder = embedder or FakeEmbedder()

    def check_files(self, findings: Findings) -> None:
        pass

    def check_device(self) -> str:
        return "cpu"

    def find_clip(self) -> Path:
        return Path(self._options.clip_weights)

    def read_resnet(self) -> Path:
        return self._options.resnet_weights

    def digests(self) -> tuple[str, str]:
        paths = self._options.resnet_weights, Path(self._options.clip_weights)
        resnet, clip = (digest(path) if path.exists() else "0" * 64 for path in paths)
        return resnet, clip

    def load(self, precision: str) -> Any:
        return self._embedder
