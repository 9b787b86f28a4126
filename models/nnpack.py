"""3x3 convolutions with a fifth of the multiplications: Winograd's F(6x6, 3x3) as NNPACK has it.

NNPACK comes with torch on Linux. 6x6 outputs cost 64 products instead of 324, against 36 for 4x4
outputs in winograd.py, and its maps are written for the processor's vectors. It maps the weight
anew at each call, so it needs enough tiles to share that. In float32 the error is 2e-5 of the
largest value; half precision is not supported.
"""

import platform

import torch

from models import winograd

OUTPUT = 6  # a tile's outputs, along a side
MIN_CHANNELS = 64
MIN_TILES = 32  # below, mapping the weight costs what the products save
TILES_PER_CHANNEL = 2  # in a strip, which fits in the cache
NO_MEMORY = ("posix_memalign failed", "updateOutput failed")  # in what torch raises


def available() -> bool:
    """Whether this build of torch and this processor have it; also prepares it for use.

    The first convolution decides for the whole process how many threads each one takes: here one,
    so that those of several images run side by side.
    """
    if platform.machine() in ("x86_64", "AMD64") and "AVX" not in (
        torch.backends.cpu.get_cpu_capability()  # AVX2 or AVX512, or NNPACK warns on stderr
    ):
        return False
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if not torch._nnpack_available():
            return False
        image, weight = torch.zeros(1, 16, 8, 8), torch.zeros(16, 16, 3, 3)
        torch._nnpack_spatial_convolution(image, weight, torch.zeros(16), 1)
        return True
    except (AttributeError, RuntimeError):
        return False
    finally:
        torch.set_num_threads(threads)


def pays_off(weight: torch.Tensor, height: int, width: int) -> bool:
    """Whether a convolution with this weight on a map of this size is faster this way."""
    return (
        weight.dtype == torch.float32
        and weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= MIN_CHANNELS
        and winograd.pays_off(height, width, OUTPUT, MIN_TILES)
    )


def convolve_relu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """ReLU of the 3x3 convolution (stride 1, padding 1) of one channels-last (1, C, H, W) map.

    NNPACK wants a channel's values together, so the map is turned, a strip of rows at a time: that
    bounds what NNPACK keeps for each thread (67 MB with 256 channels).

    Raises:
        MemoryError: there is too little for NNPACK's workspace.
    """
    _, channels, height, width = x.shape
    outputs = len(weight)
    tile_rows = max(1, TILES_PER_CHANNEL * channels // -(-width // OUTPUT))
    source = x[0].permute(1, 2, 0).reshape(height * width, channels)
    result = x.new_empty(height * width, outputs)
    for top in range(0, height, OUTPUT * tile_rows):
        bottom = min(top + OUTPUT * tile_rows, height)
        # One row more above and below; beyond the map they are zero.
        first, last = max(top - 1, 0), min(bottom + 1, height)
        strip = x.new_empty(channels, bottom - top + 2, width)
        if top == 0:
            strip[:, 0] = 0
        if bottom == height:
            strip[:, -1] = 0
        inner = strip[:, first - top + 1 : last - top + 1]
        inner.view(channels, -1).copy_(source[first * width : last * width].T)
        try:
            sums = torch._nnpack_spatial_convolution(strip[None], weight, bias, [0, 1])
        except RuntimeError as error:
            if any(words in str(error) for words in NO_MEMORY):
                raise MemoryError("main memory is too small") from error
            raise
        result[top * width : bottom * width] = sums.relu_().view(outputs, -1).T
    return result.view(1, height, width, outputs).permute(0, 3, 1, 2)
