"""A convolution with its bias, and the addition and ReLU that follow, in one pass over memory.

Plain torch runs convolution, addition and ReLU one after the other. oneDNN on a CPU and cuDNN on a
GPU compute them in one pass, through operators that torch's own compiler emits for frozen models.
These are not part of torch's documented interface, so each kind of convolution of a model is tried
first (`agree`), and plain torch computes the kinds for which they fail or are wrong.
"""

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

# Largest difference of values of up to 10, by precision; a wrong operation differs by more than 1.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.2}
SAMPLE = (2, 9, 10)  # images, height, width of the maps that are tried
# What an undocumented operator raises if it does not exist, or not for this device or precision.
REFUSALS = (RuntimeError, AttributeError, TypeError)
Follows = Literal["nothing", "relu", "add_relu"]  # what comes after a convolution


class Operations(Protocol):
    """What ResNet-50 consists of; x and residual are channels-last, residual may be overwritten."""

    def convolve(self, x: Tensor, convolution: "Convolution") -> Tensor: ...

    def convolve_relu(self, x: Tensor, convolution: "Convolution") -> Tensor: ...

    def convolve_add_relu(
        self, x: Tensor, convolution: "Convolution", residual: Tensor
    ) -> Tensor: ...


class PlainOperations:
    """torch's public functions, on any device."""

    def convolve(self, x: Tensor, convolution: "Convolution") -> Tensor:
        weight, bias, stride, padding, _ = convolution
        return torch.conv2d(x, weight, bias, stride, padding)

    def convolve_relu(self, x: Tensor, convolution: "Convolution") -> Tensor:
        return self.convolve(x, convolution).relu_()

    def convolve_add_relu(self, x: Tensor, convolution: "Convolution", residual: Tensor) -> Tensor:
        return self.convolve(x, convolution).add_(residual).relu_()


class OneDnnOperations:
    """oneDNN on a CPU: bias, addition and ReLU are computed while the sums are in registers.

    With plain torch the models take 1.44 times as long at 640x480 and 1.15 times at mixed sizes.
    """

    def _run(self, x: Tensor, convolution: "Convolution", after: str) -> Tensor:
        weight, bias, stride, padding, _ = convolution
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, [padding] * 2, [stride] * 2, [1, 1], 1, after, [], ""
        )

    def convolve(self, x: Tensor, convolution: "Convolution") -> Tensor:
        return self._run(x, convolution, "none")

    def convolve_relu(self, x: Tensor, convolution: "Convolution") -> Tensor:
        return self._run(x, convolution, "relu")

    def convolve_add_relu(self, x: Tensor, convolution: "Convolution", residual: Tensor) -> Tensor:
        weight, bias, stride, padding, _ = convolution
        sizes = ([padding] * 2, [stride] * 2, [1, 1], 1)
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            residual, x, weight, bias, *sizes, "add", 1.0, "relu", [], ""
        )


class CudnnOperations(PlainOperations):
    """cuDNN on a GPU: bias, addition and ReLU are part of the convolution's kernel."""

    def convolve_relu(self, x: Tensor, convolution: "Convolution") -> Tensor:
        weight, bias, stride, padding, _ = convolution
        return torch.cudnn_convolution_relu(x, weight, bias, [stride] * 2, [padding] * 2, [1, 1], 1)

    def convolve_add_relu(self, x: Tensor, convolution: "Convolution", residual: Tensor) -> Tensor:
        weight, bias, stride, padding, _ = convolution
        return torch.cudnn_convolution_add_relu(
            x, weight, residual, 1.0, bias, [stride] * 2, [padding] * 2, [1, 1], 1
        )


class Convolution(NamedTuple):
    """A convolution and what computes it."""

    weight: Tensor
    bias: Tensor | None
    stride: int = 1
    padding: int = 0
    operations: Operations = PlainOperations()

    def __call__(self, x: Tensor) -> Tensor:
        return self.operations.convolve(x, self)

    def relu(self, x: Tensor) -> Tensor:
        return self.operations.convolve_relu(x, self)

    def add_relu(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.operations.convolve_add_relu(x, self, residual)


def fused_operations(device: torch.device) -> Operations:
    """The operators that compute a convolution and what follows in one pass on the device."""
    return CudnnOperations() if device.type == "cuda" else OneDnnOperations()


def kind(convolution: Convolution) -> str:
    """What an operator may support or not, such as "3x3/1 of 64 to 64 channels"."""
    outputs, inputs, side, _ = convolution.weight.shape
    return f"{side}x{side}/{convolution.stride} of {inputs} to {outputs} channels"


def agree(convolution: Convolution, follows: Follows) -> bool:
    """Whether a convolution gives on a small sample what plain torch gives in float32."""
    weight, bias, stride, padding, _ = convolution
    device, dtype = weight.device, weight.dtype
    random = torch.Generator().manual_seed(0)
    n, height, width = SAMPLE
    outputs, inputs, side, _ = weight.shape
    # Inputs that make outputs of up to about 10 with any weights.
    scale = 1 / max(float(weight.float().square().sum((1, 2, 3)).max()) ** 0.5, 1e-9)
    sample = scale * torch.randn(n, inputs, height, width, generator=random)
    shape = (n, outputs, *(-(-(size + 2 * padding - side + 1) // stride) for size in SAMPLE[1:]))
    residual = torch.randn(shape, generator=random)
    x, added = (
        part.to(device, dtype).contiguous(memory_format=torch.channels_last)
        for part in (sample, residual)
    )
    exact = Convolution(
        weight.float().cpu(), None if bias is None else bias.float().cpu(), stride, padding
    )
    expected = _apply(exact, follows, x.float().cpu(), added.float().cpu())
    try:
        _poison_free_memory(expected.shape, device, dtype)
        result = _apply(convolution, follows, x, added).float().cpu()
    except REFUSALS:
        return False
    scale = max(10.0, float(expected.abs().max())) / 10  # of rounding errors
    # Written so that NaN disagrees.
    return bool((result - expected).abs().max() < TOLERANCE[dtype] * scale)


def _apply(convolution: Convolution, follows: Follows, x: Tensor, residual: Tensor) -> Tensor:
    if follows == "add_relu":
        return convolution.add_relu(x, residual)
    return convolution.relu(x) if follows == "relu" else convolution(x)


def _poison_free_memory(shape: torch.Size, device: torch.device, dtype: torch.dtype) -> None:
    """Leave NaN where the next result will be: an operator may read its output before it writes."""
    if device.type == "cuda":
        torch.full(shape, float("nan"), device=device, dtype=dtype)
