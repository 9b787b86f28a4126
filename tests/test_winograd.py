"""The 3x3 convolution with fewer products against torch's own."""

import pytest
import torch

from models import winograd


def sample(channels, outputs, height, width):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, height, width, generator=random)
    weight = torch.randn(outputs, channels, 3, 3, generator=random) / (3 * channels**0.5)
    return (
        x.to(memory_format=torch.channels_last),
        weight.to(memory_format=torch.channels_last),
        torch.randn(outputs, generator=random),
    )


@pytest.mark.parametrize("size", [(16, 16), (15, 20), (17, 18), (13, 31), (1, 1), (2, 7)])
@pytest.mark.parametrize("outputs", [128, 160])
def test_agrees_with_direct_sums(size, outputs):
    x, weight, bias = sample(128, outputs, *size)
    exact = torch.conv2d(x.double(), weight.double(), bias.double(), 1, 1).relu()
    result = winograd.convolve_relu(x, winograd.transform_weight(weight), bias)
    assert result.shape == exact.shape
    assert abs(result - exact).max() < 1e-5 * exact.max()
    assert result.is_contiguous(memory_format=torch.channels_last)


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
