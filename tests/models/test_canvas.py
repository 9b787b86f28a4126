"""Images of several sizes on one canvas against each image alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.resnet import Region, build_resnet, onednn, resnet_features, with_operator

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plain(arrays):
    with torch.inference_mode():
        return build_resnet(arrays, CPU, torch.float32)


@pytest.fixture(scope="module")
def fused(plain):
    with torch.inference_mode():
        return with_operator(plain, onednn)[0]


class Poisoned(Region):
    """What is beyond the strip is never read: here it becomes NaN before each use."""

    def zero_strip(self, x):
        rows = torch.arange(x.shape[2])[:, None]
        columns = torch.arange(x.shape[3])
        inside = self.inside[:, 0]
        h, w = inside.any(2).sum(1), inside.any(1).sum(1)
        beyond = (rows > h[:, None, None]) | (columns > w[:, None, None])
        x.masked_fill_(beyond[:, None], float("nan"))
        return super().zero_strip(x)


def on_canvas(images, height, width):
    """Images at the top left of canvases full of noise, and their sizes."""
    canvases = np.random.default_rng(1).integers(0, 256, (len(images), height, width, 3), np.uint8)
    for canvas, image in zip(canvases, images, strict=True):
        canvas[: image.shape[0], : image.shape[1]] = image
    return torch.from_numpy(canvases), torch.tensor([image.shape[:2] for image in images])


def check(model, images, height, width):
    with torch.inference_mode():
        together = resnet_features(model, *on_canvas(images, height, width))
        for row, image in enumerate(images):
            alone = resnet_features(model, torch.from_numpy(image)[None])
            for one, other in zip(together[:2], alone[:2], strict=True):
                assert (one[row] - other[0]).abs().max() < 1e-5
            assert together[2][row] == alone[2][0]


def noise(*sizes, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


SIDES = st.one_of(st.integers(1, 40), st.sampled_from([1, 2, 3, 31, 32, 33, 63, 64, 65]))


@pytest.mark.parametrize("model", ["plain", "fused"])
def test_known_sizes_on_one_canvas(model, request):
    sizes = ((1, 64), (64, 1), (2, 3), (33, 31), (64, 64), (63, 17), (1, 1), (32, 64))
    check(request.getfixturevalue(model), noise(*sizes), 64, 64)


@settings(max_examples=10)
@given(
    sizes=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3),
    more=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    seed=st.integers(0, 1000),
)
def test_any_sizes_on_any_canvas_with_nan_beyond_the_strips(fused, sizes, more, seed):
    height = max(height for height, _ in sizes) + more[0]
    width = max(width for _, width in sizes) + more[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.resnet.Region", Poisoned)
        check(fused, noise(*sizes, seed=seed), height, width)


def test_without_the_strips_the_vectors_differ(plain, monkeypatch):
    monkeypatch.setattr(Region, "zero_strip", lambda self, x: x)
    (image,) = noise((40, 50))
    with torch.inference_mode():
        together, *_ = resnet_features(plain, *on_canvas([image], 64, 64))
        alone, *_ = resnet_features(plain, torch.from_numpy(image)[None])
    assert (together - alone).abs().max() > 1e-4
