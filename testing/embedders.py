"""A stand-in for embeddings.Embedder that has no models and needs no torch."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dataset.arrays import DIMENSIONS, Embedding

CLIP_SHAPE = (224, 224, 3)


def vectors_of(pixels: np.ndarray) -> tuple[Embedding, int]:
    """Vectors and class that look random and depend on the pixels alone."""
    rng = np.random.default_rng(zlib.crc32(np.ascontiguousarray(pixels).data))
    rows = [rng.standard_normal(d).astype(np.float32) for d in DIMENSIONS.values()]
    return Embedding(*(row / np.linalg.norm(row) for row in rows)), int(rng.integers(1000))


CONSTANT = Embedding(*(np.full(d, d**-0.5, np.float32) for d in DIMENSIONS.values()))
NOT_NUMBERS = Embedding(*(np.full(d, np.nan, np.float32) for d in DIMENSIONS.values()))


class FakeEmbedder:
    """Gives the vectors of `vectors_of`; `batches` has the number of images of each batch."""

    device, precision = "cpu", "float32"
    max_pixels = 100_000_000

    def __init__(
        self,
        *,
        seconds: float = 0.0,
        constant: bool = False,
        nan_size: tuple[int, int] | None = None,
        workers: int = 1,
        batch_size: int = 4,
        clip_batch_size: int = 8,
        makes_clip_inputs: bool = False,
    ) -> None:
        """
        Args:
            seconds: how long ResNet-50 takes per image; it sleeps.
            constant: the same vectors for every image, which costs no time.
            nan_size: (width, height) of the images whose vectors are NaN.
            workers, batch_size, clip_batch_size, makes_clip_inputs: as of embeddings.Embedder.
        """
        self._seconds, self._constant, self._nan_size = seconds, constant, nan_size
        self._batch_size = batch_size
        self.workers, self.clip_batch_size = workers, clip_batch_size
        self.makes_clip_inputs = makes_clip_inputs
        self.batches: list[int] = []

    def resnet_batch_size(self, height: int, width: int) -> int:
        return self._batch_size

    def start_resnet(self, images: Sequence[np.ndarray]) -> Callable[[], Any]:
        if len({image.shape for image in images}) != 1:
            raise ValueError("a batch has images of different sizes")
        self.batches.append(len(images))
        time.sleep(self._seconds * len(images))
        embeddings, classes = zip(*map(self._vectors, images), strict=True)
        imagenet, early, _ = map(np.stack, zip(*embeddings, strict=True))
        return lambda: (imagenet, early, np.array(classes))

    def start_clip(self, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        if {image.shape for image in inputs} != {CLIP_SHAPE}:
            raise ValueError(f"an input of CLIP is not of the shape {CLIP_SHAPE}")
        rows = self._clip_rows(inputs)
        return lambda: rows

    def start_both(self, images: Sequence[np.ndarray]) -> Callable[[], Any]:
        rows = *self.start_resnet(images)(), self._clip_rows(images)
        return lambda: rows

    def _clip_rows(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([self._vectors(image)[0].clip for image in images])

    def _vectors(self, pixels: np.ndarray) -> tuple[Embedding, int]:
        if self._constant:
            return CONSTANT, 0
        if self._nan_size == (pixels.shape[1], pixels.shape[0]):
            return NOT_NUMBERS, 0
        return vectors_of(pixels)
