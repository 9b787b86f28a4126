"""A convolution with its bias and what follows it, in as few passes over memory as the device has.

Plain torch runs convolution, addition and ReLU one after the other. oneDNN on a CPU and cuDNN on a
GPU compute them in one pass, through operators that torch's own compiler emits for frozen models.
They are not part of torch's documented interface, so `choose_operations` tries them first and takes
plain torch where they fail or compute something else.
"""

import functools
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from models import winograd

# Largest difference of values of up to 10, by precision; a wrong operation differs by more than 1.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.2}
MAPPED_KEPT = 2 * 13  # weights for winograd.py: ResNet-50 has 13 of them, 180 MB together
# What an undocumented operator raises that is not there, or is not for this device or precision.
REFUSALS = (RuntimeError, AttributeError, TypeError)


class Convolution(NamedTuple):
    weight: Tensor
    bias: Tensor
    stride: int
    padding: int
    scale: int  # pixels of the image for one of the input, along a side
    mapped: Tensor | None = None  # the weight for winograd.py, where that way is taken


class Operations(Protocol):
    """What ResNet-50 consists of; x and residual are channels-last, residual may be overwritten."""

    def packed(self, convolution: Convolution, height: int, width: int) -> Convolution: ...

    def convolve(self, x: Tensor, convolution: Convolution) -> Tensor: ...

    def convolve_relu(self, x: Tensor, convolution: Convolution) -> Tensor: ...

    def convolve_add_relu(
        self, x: Tensor, convolution: Convolution, residual: Tensor
    ) -> Tensor: ...


class PlainOperations:
    """torch's public functions, on any device."""

    def packed(self, convolution: Convolution, height: int, width: int) -> Convolution:
        return convolution

    def convolve(self, x: Tensor, convolution: Convolution) -> Tensor:
        return torch.conv2d(x, *convolution[:4])

    def convolve_relu(self, x: Tensor, convolution: Convolution) -> Tensor:
        return self.convolve(x, convolution).relu_()

    def convolve_add_relu(self, x: Tensor, convolution: Convolution, residual: Tensor) -> Tensor:
        return self.convolve(x, convolution).add_(residual).relu_()


class OneDnnOperations:
    """oneDNN on a CPU: bias, addition and ReLU are computed while the sums are in registers.

    3x3 convolutions of one image take the way with fewer products where that is faster.
    """

    def __init__(self) -> None:
        # Images of different sizes mostly have the same number of tiles at once.
        self._mapped = functools.lru_cache(MAPPED_KEPT)(winograd.mapped_weight)

    def packed(self, convolution: Convolution, height: int, width: int) -> Convolution:
        """With the weights laid out as oneDNN wants them for an image of this size.

        A layout chosen for another size is worse than none: it is converted at each use.
        """
        weight, _, stride, padding, scale, _ = convolution
        map_size = -(-height // scale), -(-width // scale)
        if winograd.pays_off(weight, *map_size):
            mapped = self._mapped(weight, winograd.strip_tiles(*map_size))
            return convolution._replace(mapped=mapped)
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        shape = [1, weight.shape[1], *map_size]
        weight = reorder(weight.to_mkldnn(), [padding] * 2, [stride] * 2, [1, 1], 1, shape)
        return convolution._replace(weight=weight)

    def _run(self, x: Tensor, convolution: Convolution, after: str) -> Tensor:
        weight, bias, stride, padding, *_ = convolution
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, [padding] * 2, [stride] * 2, [1, 1], 1, after, [], ""
        )

    def convolve(self, x: Tensor, convolution: Convolution) -> Tensor:
        return self._run(x, convolution, "none")

    def convolve_relu(self, x: Tensor, convolution: Convolution) -> Tensor:
        if convolution.mapped is not None:
            return winograd.convolve_relu(x, convolution.mapped, convolution.bias)
        return self._run(x, convolution, "relu")

    def convolve_add_relu(self, x: Tensor, convolution: Convolution, residual: Tensor) -> Tensor:
        weight, bias, stride, padding, *_ = convolution
        sizes = ([padding] * 2, [stride] * 2, [1, 1], 1)
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            residual, x, weight, bias, *sizes, "add", 1.0, "relu", [], ""
        )


class CudnnOperations(PlainOperations):
    """cuDNN on a GPU: bias, addition and ReLU are part of the convolution's kernel."""

    def convolve_relu(self, x: Tensor, convolution: Convolution) -> Tensor:
        weight, bias, stride, padding, *_ = convolution
        return torch.cudnn_convolution_relu(x, weight, bias, [stride] * 2, [padding] * 2, [1, 1], 1)

    def convolve_add_relu(self, x: Tensor, convolution: Convolution, residual: Tensor) -> Tensor:
        weight, bias, stride, padding, *_ = convolution
        return torch.cudnn_convolution_add_relu(
            x, weight, residual, 1.0, bias, [stride] * 2, [padding] * 2, [1, 1], 1
        )


def choose_operations(device: torch.device, dtype: torch.dtype) -> Operations:
    """The fused operations of the device where they agree with plain torch, else plain torch."""
    fused = CudnnOperations() if device.type == "cuda" else OneDnnOperations()
    return fused if agree(fused, device, dtype) else PlainOperations()


def agree(operations: Operations, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the operations give on a small sample what plain torch gives in float32."""
    random = torch.Generator().manual_seed(0)
    sample, residual = (
        torch.randn(1, 128, 31, 36, generator=random).to(memory_format=torch.channels_last)
        for _ in range(2)
    )
    weight = torch.randn(128, 128, 3, 3, generator=random) / (9 * 128) ** 0.5
    weight = weight.to(memory_format=torch.channels_last)
    exact = Convolution(weight, torch.randn(128, generator=random), 1, 1, 1)
    plain = PlainOperations()
    try:
        given = exact._replace(weight=weight.to(device, dtype), bias=exact.bias.to(device, dtype))
        x = sample.to(device, dtype)
        for convolution in (given, operations.packed(given, 31, 36)):
            for result, expected in (
                (operations.convolve(x, convolution), plain.convolve(sample, exact)),
                (operations.convolve_relu(x, convolution), plain.convolve_relu(sample, exact)),
                (
                    operations.convolve_add_relu(
                        x, convolution, residual.to(device, dtype, copy=True)
                    ),
                    plain.convolve_add_relu(sample, exact, residual),
                ),
            ):
                # Written so that NaN disagrees.
                if not (result.float().cpu() - expected).abs().max() < TOLERANCE[dtype]:
                    return False
    except REFUSALS:
        return False
    return True
