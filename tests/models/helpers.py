"""What the tests of the models share: the reference, and images through an embedder."""

import json

import numpy as np

from bench.support import device
from dataset.arrays import DIMENSIONS

REFERENCE = device.REFERENCE
NAMES = json.loads((REFERENCE / "expected" / "names.json").read_text())
TOLERANCE = 1e-6  # of elements of unit vectors; the contract is 1e-5


def as_rows(embeddings):
    """{name: rows} of embeddings, and their classes as "classes"."""
    rows = zip(*(embedding.vectors for embedding in embeddings), strict=True)
    arrays = {name: np.stack(row) for name, row in zip(DIMENSIONS, rows, strict=True)}
    return {**arrays, "classes": np.array([e.imagenet_class for e in embeddings])}


def embed(embedder, images, clip_inputs=None):
    """The rows of images of any sizes, in their order, batched as in an ingest."""
    return as_rows(device.embed(embedder, images, clip_inputs))


def embed_photographs(embedder, photographs):
    return embed(embedder, [p.pixels for p in photographs], [p.clip_input for p in photographs])


def assert_close(rows, expected, order=slice(None), tolerance=TOLERANCE):
    for name in DIMENSIONS:
        assert rows[name].dtype == np.float32
        assert abs(rows[name] - expected[name][order]).max() < tolerance, name
