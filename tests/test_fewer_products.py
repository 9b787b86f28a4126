"""The 3x3 convolutions with fewer products against torch's own."""

import pytest
import torch

from models import nnpack, winograd

needs_nnpack = pytest.mark.skipif(not nnpack.available(), reason="needs torch with NNPACK")


def sample(channels, outputs, height, width):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, height, width, generator=random)
    weight = torch.randn(outputs, channels, 3, 3, generator=random) / (3 * channels**0.5)
    return (
        x.to(memory_format=torch.channels_last),
        weight,
        torch.randn(outputs, generator=random),
    )


def assert_agrees(result, x, weight, bias, tolerance):
    exact = torch.conv2d(x.double(), weight.double(), bias.double(), 1, 1).relu()
    assert result.shape == exact.shape
    assert abs(result - exact).max() < tolerance * exact.max()
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(16, 16), (15, 20), (17, 18), (13, 31), (1, 1), (2, 7)])
@pytest.mark.parametrize("outputs", [128, 160])
def test_winograd_agrees_with_direct_sums(size, outputs):
    x, weight, bias = sample(128, outputs, *size)
    result = winograd.convolve_relu(x, winograd.transform_weight(weight), bias)
    assert_agrees(result, x, weight, bias, 1e-5)


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(128, 128, 1, 1),
        torch.zeros(64, 64, 3, 3),
        torch.zeros(64, 128, 3, 3),
        torch.zeros(128, 128, 3, 3, dtype=torch.bfloat16),
    ],
)
def test_other_convolutions_stay_direct(weight):
    assert winograd.transform_weight(weight) is None


@pytest.mark.parametrize(
    ("size", "expected"), [((15, 20), True), ((16, 16), True), ((4, 4), False), ((1, 100), False)]
)
def test_small_and_narrow_maps_stay_direct(size, expected):
    assert winograd.pays_off(*size) is expected


@needs_nnpack
@pytest.mark.parametrize("size", [(36, 36), (60, 80), (120, 160), (7, 301), (37, 12), (1, 1)])
@pytest.mark.parametrize("outputs", [64, 96])
def test_nnpack_agrees_with_direct_sums_in_one_strip_or_many(size, outputs):
    x, weight, bias = sample(64, outputs, *size)
    assert_agrees(nnpack.convolve_relu(x, weight, bias), x, weight, bias, 5e-5)


@needs_nnpack
def test_strips_give_the_bits_of_the_whole_map(monkeypatch):
    x, weight, bias = sample(64, 64, 47, 50)
    whole = nnpack.convolve_relu(x, weight, bias)
    monkeypatch.setattr(nnpack, "TILES_PER_CHANNEL", 1 / 64)  # a strip for each row of tiles
    assert torch.equal(nnpack.convolve_relu(x, weight, bias), whole)


@pytest.mark.parametrize("words", nnpack.NO_MEMORY)
def test_too_little_memory_for_nnpack_is_a_memory_error(words, monkeypatch):
    def fail(*_):
        raise RuntimeError(f"{words}: Cannot allocate memory (12)")

    monkeypatch.setattr(torch, "_nnpack_spatial_convolution", fail)
    with pytest.raises(MemoryError):
        nnpack.convolve_relu(*sample(64, 64, 36, 36))


@pytest.mark.parametrize(
    ("shape", "dtype", "size", "expected"),
    [
        ((64, 64, 3, 3), torch.float32, (36, 36), True),
        ((512, 512, 3, 3), torch.float32, (34, 60), True),
        ((512, 512, 3, 3), torch.float32, (15, 20), False),
        ((64, 64, 3, 3), torch.float32, (2, 1250), False),
        ((64, 64, 1, 1), torch.float32, (120, 160), False),
        ((64, 3, 7, 7), torch.float32, (480, 640), False),
        ((64, 64, 3, 3), torch.bfloat16, (120, 160), False),
    ],
)
def test_nnpack_takes_wide_maps_of_3x3_in_float32(shape, dtype, size, expected):
    assert nnpack.pays_off(torch.zeros(shape, dtype=dtype), *size) is expected
