"""The reference photographs, what the original packages make of them, and an embedder."""

import numpy as np
import pytest

from dataset.arrays import DIMENSIONS
from embeddings import Embedder
from engine.decode import open_image, prepare
from tests.models.helpers import NAMES, REFERENCE
from weights.resnet50 import read_resnet_weights


@pytest.fixture(scope="module")
def expected():
    return {name: np.load(REFERENCE / "expected" / f"{name}.npy") for name in DIMENSIONS}


@pytest.fixture(scope="module")
def photographs():
    files = [(REFERENCE / "images" / name).read_bytes() for name in NAMES]
    return [prepare(open_image(data)) for data in files]


@pytest.fixture(scope="module")
def weights(weights_dir):
    return weights_dir / "R-50.pkl", weights_dir / "clip-vit-base-patch32"


@pytest.fixture(scope="session")
def arrays(weights_dir):
    """The arrays of R-50.pkl, which are read once; nobody changes them."""
    return read_resnet_weights(weights_dir / "R-50.pkl")


@pytest.fixture(scope="module")
def make_embedder(weights, arrays):
    """Makes an embedder of float32 on the CPU, or with other options."""
    usual = {"device": "cpu", "precision": "float32", "resnet_arrays": arrays}
    return lambda **options: Embedder(*weights, **(usual | options))


@pytest.fixture(scope="module")
def embedder(make_embedder):
    return make_embedder()
