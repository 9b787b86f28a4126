"""The 3x3 convolutions with fewer products against torch's own."""

import pytest
import torch

from models import winograd


def sample(channels, outputs, height, width):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, height, width, generator=random)
    weight = torch.randn(outputs, channels, 3, 3, generator=random) / (3 * channels**0.5)
    return (
        x.to(memory_format=torch.channels_last),
        weight,
        torch.randn(outputs, generator=random),
    )


def convolve(x, weight, bias):
    mapped = winograd.mapped_weight(weight, winograd.strip_tiles(*x.shape[2:]))
    return winograd.convolve_relu(x, mapped, bias)


@pytest.mark.parametrize(
    "size", [(16, 16), (15, 20), (17, 18), (13, 31), (1, 1), (2, 7), (60, 80), (37, 41), (5, 400)]
)
@pytest.mark.parametrize("outputs", [128, 160])
def test_winograd_agrees_with_direct_sums_in_one_strip_or_many(size, outputs):
    x, weight, bias = sample(128, outputs, *size)
    result = convolve(x, weight, bias)
    exact = torch.conv2d(x.double(), weight.double(), bias.double(), 1, 1).relu()
    assert result.shape == exact.shape
    assert abs(result - exact).max() < 1e-5 * exact.max()
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_strips_give_what_the_whole_map_gives(monkeypatch):
    given = sample(128, 128, 47, 50)
    in_strips = convolve(*given)
    monkeypatch.setattr(winograd, "STRIP_TILES", 10_000)
    assert torch.allclose(convolve(*given), in_strips, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (60, 80), (30, 40), (15, 20), (1000, 7), (7, 1000)])
def test_strips_cover_the_map_evenly(size):
    down, across = -(-size[0] // 4), -(-size[1] // 4)
    rows = winograd.strip_rows(*size)
    strips = -(-down // rows)
    assert rows == 1 or rows * across <= winograd.STRIP_TILES
    assert strips * rows - down < strips  # less than a row too much in each


@pytest.mark.parametrize(
    ("shape", "dtype", "size", "expected"),
    [
        ((128, 128, 3, 3), torch.float32, (60, 80), True),
        ((512, 512, 3, 3), torch.float32, (15, 20), True),
        ((512, 512, 3, 3), torch.float32, (7, 7), False),  # few tiles
        ((128, 128, 3, 3), torch.float32, (1, 100), False),  # mostly edge
        ((64, 64, 3, 3), torch.float32, (120, 160), False),
        ((64, 128, 3, 3), torch.float32, (60, 80), False),
        ((128, 128, 1, 1), torch.float32, (60, 80), False),
        ((128, 128, 3, 3), torch.bfloat16, (60, 80), False),
    ],
)
def test_winograd_is_for_wide_maps_of_3x3_in_float32(shape, dtype, size, expected):
    assert winograd.pays_off(torch.zeros(shape, dtype=dtype), *size) is expected
