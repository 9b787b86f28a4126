"""A convolution with its bias, and what follows it, in as few passes over memory as the device has.

Plain torch runs convolution, addition and ReLU one after the other. On a CPU, oneDNN computes them
in one pass, through the operators that torch's own compiler emits for frozen models.
"""

from typing import NamedTuple, Protocol

import torch


class Convolution(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor
    stride: int
    padding: int


class Operations(Protocol):
    """What ResNet-50 consists of; x and residual are channels-last NCHW."""

    def prepare(
        self, weight: torch.Tensor, bias: torch.Tensor, stride: int, padding: int
    ) -> Convolution: ...

    def convolve(self, x: torch.Tensor, convolution: Convolution) -> torch.Tensor: ...

    def convolve_relu(self, x: torch.Tensor, convolution: Convolution) -> torch.Tensor: ...

    def convolve_add_relu(
        self, x: torch.Tensor, convolution: Convolution, residual: torch.Tensor
    ) -> torch.Tensor: ...


class PlainOperations:
    """torch's public functions, on any device."""

    def prepare(
        self, weight: torch.Tensor, bias: torch.Tensor, stride: int, padding: int
    ) -> Convolution:
        weight = weight.contiguous(memory_format=torch.channels_last)
        return Convolution(weight, bias, stride, padding)

    def convolve(self, x: torch.Tensor, convolution: Convolution) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, *convolution)

    def convolve_relu(self, x: torch.Tensor, convolution: Convolution) -> torch.Tensor:
        return self.convolve(x, convolution).relu_()

    def convolve_add_relu(
        self, x: torch.Tensor, convolution: Convolution, residual: torch.Tensor
    ) -> torch.Tensor:
        return self.convolve(x, convolution).add_(residual).relu_()


def choose_operations(device: torch.device, dtype: torch.dtype) -> Operations:
    """The fastest operations that work here."""
    return PlainOperations()
