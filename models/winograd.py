"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3).

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), section 4.1: 4x4 outputs
come from 36 products instead of 144, after linear maps of a 6x6 tile of the input and of the
kernel. In float32 the error is about 5 times that of the direct sum, 5e-6 of the largest value;
half precision has no room for that.
"""

import torch

TILE, OUTPUT = 6, 4
MIN_CHANNELS = 128  # below, the maps cost what the products save
MIN_TILES = 16  # below, reading the larger weights costs what the products save
MAX_WASTE = 1.4  # outputs computed for one used: the last tiles reach over the edge

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


def transform_weight(weight: torch.Tensor) -> torch.Tensor | None:
    """The mapped kernels, (36, outputs, inputs), of a (outputs, inputs, 3, 3) float32 weight.

    None where this way would not be faster.
    """
    outputs, inputs, *size = weight.shape
    if size != [3, 3] or min(outputs, inputs) < MIN_CHANNELS or weight.dtype != torch.float32:
        return None
    kernels = weight.permute(2, 3, 0, 1).reshape(9, outputs * inputs)
    return (KERNEL_MATRIX @ kernels).view(TILE * TILE, outputs, inputs)


def pays_off(height: int, width: int, output: int = OUTPUT, min_tiles: int = MIN_TILES) -> bool:
    """Whether a map of this size has enough tiles, and few enough that are mostly edge."""
    tiles = -(-height // output) * -(-width // output)
    return tiles >= min_tiles and tiles * output**2 <= MAX_WASTE * height * width


def convolve_relu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """ReLU of the 3x3 convolution (stride 1, padding 1) of one channels-last (1, C, H, W) map."""
    _, channels, height, width = x.shape
    down, across = -(-height // OUTPUT), -(-width // OUTPUT)
    padded = x.new_zeros(down * OUTPUT + 2, across * OUTPUT + 2, channels)
    padded[1 : height + 1, 1 : width + 1] = x[0].permute(1, 2, 0)
    row, column, _ = padded.stride()
    # Tiles overlap by 2: a view of each of the 36 places in a tile, over all tiles.
    places = padded.as_strided(
        (TILE, TILE, down, across, channels), (row, column, OUTPUT * row, OUTPUT * column, 1)
    )
    tiles = INPUT_MATRIX @ places.reshape(TILE * TILE, -1)
    tiles = tiles.view(TILE * TILE, down * across, channels)
    products = torch.bmm(tiles, weight.transpose(1, 2))
    outputs = weight.shape[1]
    results = (OUTPUT_MATRIX @ products.view(TILE * TILE, -1)).view(
        OUTPUT, OUTPUT, down, across, outputs
    )
    image = results.permute(2, 0, 3, 1, 4).reshape(down * OUTPUT, across * OUTPUT, outputs)
    return torch.add(image[:height, :width], bias).relu_().permute(2, 0, 1)[None]
