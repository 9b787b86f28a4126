"""Both models of a backend, as functions of pixels."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

Tensors = tuple[Tensor, ...]


class ResNetFunction(Protocol):
    def __call__(self, pixels: Tensor, sizes: Tensor | None = None) -> Tensors:
        """res5 (n, 2048), res4 (n, 1024), ImageNet classes (n,)."""
        ...


class Models(NamedTuple):
    """Each function takes uint8 (n, height, width, 3) RGB pixels and returns unit vectors."""

    resnet: ResNetFunction
    clip: Callable[[Tensor], Tensor]  # (n, 512) of (n, 224, 224, 3)
    takes_canvases: bool = False  # resnet takes `sizes`, of images on larger canvases
    plain_kinds: tuple[str, ...] = ()  # convolutions for which the device's fused operators fail
    largest_activation: Callable[[Tensor], float] | None = None  # of ResNet, see models/resnet.py
