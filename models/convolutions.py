"""A convolution with its bias, and the addition and ReLU that follow, in one pass over memory.

Plain torch runs convolution, addition and ReLU one after the other. oneDNN on a CPU and cuDNN on a
GPU compute them in one pass, through operators that torch's own compiler emits for frozen models.
These are not part of torch's documented interface, so `choose_operations` tries them on a sample
and takes plain torch if they fail or compute something else.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# Largest difference of values of up to 10, by precision; a wrong operation differs by more than 1.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.2}
# What an undocumented operator raises if it does not exist, or not for this device or precision.
REFUSALS = (RuntimeError, AttributeError, TypeError)


class Convolution(NamedTuple):
    weight: Tensor
    bias: Tensor | None
    stride: int
    padding: int


class Operations(Protocol):
    """What ResNet-50 consists of; x and residual are channels-last, residual may be overwritten."""

    def convolve(self, x: Tensor, convolution: Convolution) -> Tensor: ...

    def convolve_relu(self, x: Tensor, convolution: Convolution) -> Tensor: ...

    def convolve_add_relu(
        self, x: Tensor, convolution: Convolution, residual: Tensor
    ) -> Tensor: ...


class PlainOperations:
    """torch's public functions, on any device."""

    def convolve(self, x: Tensor, convolution: Convolution) -> Tensor:
        return torch.conv2d(x, *convolution)

    def convolve_relu(self, x: Tensor, convolution: Convolution) -> Tensor:
        return self.convolve(x, convolution).relu_()

    def convolve_add_relu(self, x: Tensor, convolution: Convolution, residual: Tensor) -> Tensor:
        return self.convolve(x, convolution).add_(residual).relu_()


class OneDnnOperations:
    """oneDNN on a CPU: bias, addition and ReLU are computed while the sums are in registers.

    With plain torch the models take 1.44 times as long at 640x480 and 1.15 times at mixed sizes.
    """

    def _run(self, x: Tensor, convolution: Convolution, after: str) -> Tensor:
        weight, bias, stride, padding = convolution
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, [padding] * 2, [stride] * 2, [1, 1], 1, after, [], ""
        )

    def convolve(self, x: Tensor, convolution: Convolution) -> Tensor:
        return self._run(x, convolution, "none")

    def convolve_relu(self, x: Tensor, convolution: Convolution) -> Tensor:
        return self._run(x, convolution, "relu")

    def convolve_add_relu(self, x: Tensor, convolution: Convolution, residual: Tensor) -> Tensor:
        weight, bias, stride, padding = convolution
        sizes = ([padding] * 2, [stride] * 2, [1, 1], 1)
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            residual, x, weight, bias, *sizes, "add", 1.0, "relu", [], ""
        )


class CudnnOperations(PlainOperations):
    """cuDNN on a GPU: bias, addition and ReLU are part of the convolution's kernel."""

    def convolve_relu(self, x: Tensor, convolution: Convolution) -> Tensor:
        weight, bias, stride, padding = convolution
        return torch.cudnn_convolution_relu(x, weight, bias, [stride] * 2, [padding] * 2, [1, 1], 1)

    def convolve_add_relu(self, x: Tensor, convolution: Convolution, residual: Tensor) -> Tensor:
        weight, bias, stride, padding = convolution
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
    bias = torch.randn(128, generator=random)
    exact = Convolution(weight, bias, 1, 1)
    plain = PlainOperations()
    try:
        given = exact._replace(weight=weight.to(device, dtype), bias=bias.to(device, dtype))
        x, on_device = sample.to(device, dtype), residual.to(device, dtype, copy=True)
        pairs = (
            (operations.convolve(x, given), plain.convolve(sample, exact)),
            (operations.convolve_relu(x, given), plain.convolve_relu(sample, exact)),
            (
                operations.convolve_add_relu(x, given, on_device),
                plain.convolve_add_relu(sample, exact, residual),
            ),
        )
    except REFUSALS:
        return False
    # Written so that NaN disagrees.
    return all(
        bool((result.float().cpu() - expected).abs().max() < TOLERANCE[dtype])
        for result, expected in pairs
    )
