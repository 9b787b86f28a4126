"""What the tests of the models share: the reference, and images through an embedder."""

import json
from pathlib import Path

import numpy as np
import torch

from dataset.arrays import DIMENSIONS

REFERENCE = Path(__file__).parents[1] / "reference"
NAMES = json.loads((REFERENCE / "expected" / "names.json").read_text())
TOLERANCE = 1e-6  # of elements of unit vectors; the contract is 1e-5


def embed(embedder, images, clip_inputs=None):
    """{name: rows} of images of any sizes, in their order, and their classes as "classes"."""
    clip_inputs = clip_inputs or [None] * len(images)
    found = {}
    groups = {}
    for i, image in enumerate(images):
        groups.setdefault(embedder.group(*image.shape[:2]), []).append(i)
    for group in groups.values():
        step = embedder.batch_size(*images[group[0]].shape[:2])
        for start in range(0, len(group), step):
            batch = group[start : start + step]
            started = embedder.start([images[i] for i in batch], [clip_inputs[i] for i in batch])
            found.update(zip(batch, started.finish(), strict=True))
    in_order = [found[i] for i in range(len(images))]
    rows = zip(*(embedding.vectors for embedding in in_order), strict=True)
    arrays = {name: np.stack(row) for name, row in zip(DIMENSIONS, rows, strict=True)}
    return {**arrays, "classes": np.array([e.imagenet_class for e in in_order])}


def embed_photographs(embedder, photographs):
    return embed(embedder, [p.pixels for p in photographs], [p.clip_input for p in photographs])


def assert_expected(rows, expected, order=slice(None)):
    for name in DIMENSIONS:
        assert rows[name].dtype == np.float32
        assert abs(rows[name] - expected[name][order]).max() < TOLERANCE, name


class Capture:
    """As GpuCapture: what is captured is computed by `replay` only, into the same outputs."""

    def __init__(self, *, fails=False, adds=0.0):
        self.fails, self.adds, self.replays = fails, adds, 0

    def __call__(self, compute):
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        outputs = tuple(torch.full_like(tensor, 7) for tensor in compute())

        def replay():
            self.replays += 1
            for output, tensor in zip(outputs, compute(), strict=True):
                output.copy_(tensor + self.adds if tensor.is_floating_point() else tensor)

        return replay, outputs
