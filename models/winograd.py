"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3).

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), section 4.1: 4x4 outputs
come from 36 products instead of 144, after linear maps of a 6x6 tile of the input and of the
kernel. In float32 the error is about 5 times that of the direct sum, 5e-6 of the largest value;
half precision has no room for that.

The products are one convolution of oneDNN: a tile is a pixel, its 36 places are groups of channels.
"""

from typing import Any

import torch

TILE, OUTPUT = 6, 4
PLACES = TILE * TILE
MIN_CHANNELS = 128  # below, the maps cost what the products save
MIN_TILES = 8  # below, reading the larger weights costs what the products save
MAX_WASTE = 1.4  # outputs computed for one used: the last tiles reach over the edge
STRIP_TILES = 80  # mapped at once: they stay in the cache for the products

INPUT_MAP = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
KERNEL_MAP = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
OUTPUT_MAP = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def _both_axes(rows: tuple[tuple[float, ...], ...]) -> torch.Tensor:
    """The matrix that applies a map to the rows and the columns of a flattened tile."""
    matrix = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(matrix, matrix).float().contiguous()


INPUT_MATRIX = _both_axes(INPUT_MAP)  # (36, 36)
KERNEL_MATRIX = _both_axes(KERNEL_MAP)  # (36, 9)
OUTPUT_MATRIX = _both_axes(OUTPUT_MAP)  # (16, 36)


def pays_off(weight: torch.Tensor, height: int, width: int) -> bool:
    """Whether a (outputs, inputs, 3, 3) weight on a map of this size is faster this way."""
    down, across = _tiles(height, width)
    return (
        weight.dtype == torch.float32
        and weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= MIN_CHANNELS
        and down * across >= MIN_TILES
        and down * across * OUTPUT**2 <= MAX_WASTE * height * width
    )


def _tiles(height: int, width: int) -> tuple[int, int]:
    return -(-height // OUTPUT), -(-width // OUTPUT)


def strip_rows(height: int, width: int) -> int:
    """How many rows of tiles are computed at once on a map of this size."""
    down, across = _tiles(height, width)
    strips = -(-down // max(1, STRIP_TILES // across))
    return -(-down // strips)


def strip_tiles(height: int, width: int) -> int:
    """How many tiles are computed at once on a map of this size: what weights are laid out for."""
    return strip_rows(height, width) * _tiles(height, width)[1]


def mapped_weight(weight: torch.Tensor, tiles: int) -> torch.Tensor:
    """A (outputs, inputs, 3, 3) weight mapped, and laid out by oneDNN for so many tiles at once.

    A layout for another number of tiles is converted at each use, which takes longer than the rest.
    """
    outputs, inputs = weight.shape[:2]
    kernels = weight.permute(2, 3, 0, 1).reshape(9, outputs * inputs)
    mapped = (KERNEL_MATRIX @ kernels).view(PLACES * outputs, inputs, 1, 1)
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    shape = [1, PLACES * inputs, 1, tiles]
    return reorder(mapped.to_mkldnn(), [0, 0], [1, 1], [1, 1], PLACES, shape)


def convolve_relu(x: torch.Tensor, mapped: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """ReLU of the 3x3 convolution (stride 1, padding 1) of one channels-last (1, C, H, W) map.

    `mapped` is mapped_weight(weight, strip_tiles(H, W)).
    """
    _, channels, height, width = x.shape
    down, across = _tiles(height, width)
    padded = x.new_empty(down * OUTPUT + 2, across * OUTPUT + 2, channels)
    for edge in (padded[0], padded[height + 1 :], padded[:, 0], padded[:, width + 1 :]):
        edge.zero_()
    padded[1 : height + 1, 1 : width + 1] = x[0].permute(1, 2, 0)
    row, column, _ = padded.stride()
    # Tiles overlap by 2.
    tiles = padded.as_strided(
        (down, across, TILE, TILE, channels), (OUTPUT * row, OUTPUT * column, row, column, 1)
    )
    result = x.new_empty(down, OUTPUT, across, OUTPUT, len(bias))
    rows = strip_rows(height, width)
    for first in range(0, down, rows):
        top = min(first, down - rows)  # every strip has the same size: the last one overlaps
        strip = tiles[top : top + rows].reshape(rows * across, PLACES, channels)
        outputs = OUTPUT_MATRIX @ _products(INPUT_MATRIX @ strip, mapped)
        outputs = outputs.view(rows, across, OUTPUT, OUTPUT, -1).transpose(1, 2)
        torch.add(outputs, bias, out=result[top : top + rows]).relu_()
    image = result.view(down * OUTPUT, across * OUTPUT, -1)[:height, :width]
    return image.contiguous().permute(2, 0, 1)[None]


def _products(tiles: torch.Tensor, mapped: torch.Tensor) -> torch.Tensor:
    """(tiles, PLACES, C) times the mapped kernels of each place: (tiles, PLACES, outputs)."""
    pixels = tiles.view(1, 1, len(tiles), -1).permute(0, 3, 1, 2)
    sums = torch.ops.mkldnn._convolution_pointwise(
        pixels, mapped, None, [0, 0], [1, 1], [1, 1], PLACES, "none", [], ""
    )
    return sums.permute(0, 2, 3, 1).view(len(tiles), PLACES, -1)
