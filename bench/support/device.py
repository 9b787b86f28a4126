"""A device to measure on, images for it, and the rate of the models alone: for bench/gpu.py."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from common.program import ROOT
from dataset.arrays import Embedding
from embeddings import Embedder
from engine.batches import AHEAD
from models import devices
from testing.weights import seeded_weights

REFERENCE = ROOT / "tests" / "reference"
Pixels = np.ndarray  # uint8 (height, width, 3)


class Line(NamedTuple):
    """One figure; `limit` says which values are good, such as ">= 0.9"."""

    name: str
    value: float
    unit: str = ""
    limit: str = ""

    def verdict(self) -> str:
        if not self.limit:
            return ""
        relation, bound = self.limit.split()
        good = self.value >= float(bound) if relation == ">=" else self.value <= float(bound)
        return "ok" if good else "MISSED"


class Bench:
    """The device, and how much is measured on it: a CPU gets the small version."""

    def __init__(self, device: str) -> None:
        self.device = devices.choose_device(device)
        self.small = self.device.type == "cpu"
        self.weights = seeded_weights()
        self.random = np.random.default_rng(0)
        self._embedder: Embedder | None = None

    @property
    def embedder(self) -> Embedder:
        """Both models in the precision that auto chooses, loaded once."""
        if self._embedder is None:
            files = self.weights / "R-50.pkl", self.weights / "clip-vit-base-patch32"
            self._embedder = Embedder(*files, device=str(self.device))
        return self._embedder

    def noise(self, size: tuple[int, int], count: int = 1) -> list[Pixels]:
        return list(self.random.integers(0, 256, (count, *size, 3), np.uint8))

    def seconds(self, function: Callable[[], object], repeat: int = 1) -> float:
        """Seconds per call, the device's work included."""
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(repeat):
            function()
        synchronize(self.device)
        return (time.perf_counter() - start) / repeat


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def smooth(height: int, width: int) -> Pixels:
    """A reference photograph at another size: noise would make too large files."""
    with Image.open(REFERENCE / "images" / "00-astronaut-640x480.jpg") as image:
        return np.asarray(image.convert("RGB").resize((width, height)))


def batches_of(embedder: Embedder, images: list[Pixels]) -> Iterator[list[int]]:
    """The images, by their places, in full batches of one group."""
    groups: dict[Hashable, list[int]] = {}
    for place, image in enumerate(images):
        groups.setdefault(embedder.group(*image.shape[:2]), []).append(place)
    for group in groups.values():
        step = embedder.batch_size(*images[group[0]].shape[:2])
        for start in range(0, len(group), step):
            yield group[start : start + step]


def embed(
    embedder: Embedder, images: list[Pixels], clip_inputs: Sequence[Pixels | None] | None = None
) -> list[Embedding]:
    """The embeddings of images of any sizes, in their order."""
    inputs = clip_inputs or [None] * len(images)
    found: dict[int, Embedding] = {}
    for batch in batches_of(embedder, images):
        finish = embedder.start([images[i] for i in batch], [inputs[i] for i in batch])
        found.update(zip(batch, finish(), strict=True))
    return [found[place] for place in range(len(images))]


def model_rate(bench: Bench, images: list[Pixels], repeat: int = 2) -> float:
    """Images per second of both models, with images in memory and full batches."""

    def run() -> None:
        under_way: deque[Callable[[], list[Embedding]]] = deque()
        for batch in batches_of(bench.embedder, images):
            if len(under_way) == AHEAD:
                under_way.popleft()()
            under_way.append(bench.embedder.start([images[i] for i in batch], [None] * len(batch)))
        while under_way:
            under_way.popleft()()

    run()
    return len(images) / bench.seconds(run, repeat)
