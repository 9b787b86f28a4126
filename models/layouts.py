"""ResNet-50 with its weights laid out for the image sizes that recur."""

import threading
from collections import Counter
from typing import NamedTuple

from models.convolutions import Operations
from models.resnet import ResNet, map_convolutions

LAYOUTS_KEPT = 4  # at most 94 MB each in float32
SIZES_COUNTED = 10_000


class Size(NamedTuple):
    height: int
    width: int


class PackedResNet:
    """Hands out the model for an image size; keeps the layouts of the sizes that come most often.

    Every size is laid out: that takes 20 to 40 ms, and so does the conversion in each pass with
    weights that are not. An image's numbers then never depend on what came before it.
    """

    def __init__(self, model: ResNet, operations: Operations) -> None:
        self._model, self._operations = model, operations
        self._kept: dict[Size, ResNet] = {}
        self._counts: Counter[Size] = Counter()
        self._lock = threading.Lock()

    def for_size(self, size: Size) -> ResNet:
        with self._lock:
            if len(self._counts) >= SIZES_COUNTED:
                self._counts = Counter({kept: self._counts[kept] for kept in self._kept})
            self._counts[size] += 1
            if size in self._kept:
                return self._kept[size]
        laid_out = map_convolutions(self._model, lambda part: self._operations.packed(part, *size))
        with self._lock:
            self._keep(size, laid_out)
        return laid_out

    def _keep(self, size: Size, laid_out: ResNet) -> None:
        """Keep it if there is room, or instead of one that came less often."""
        if size in self._kept:  # by another thread meanwhile
            return
        if len(self._kept) >= LAYOUTS_KEPT:
            rarest = min(self._kept, key=self._counts.__getitem__)
            if self._counts[size] <= self._counts[rarest]:
                return
            del self._kept[rarest]
        self._kept[size] = laid_out
