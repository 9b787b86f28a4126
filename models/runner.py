"""Batches of both models on a GPU: canvases, streams, events and pinned memory.

Pixels travel from pinned memory on a stream of their own, results come back into pinned memory, and
an event tells when they are there. Nothing waits for the device but the function that `launch`
returns. None of this has run on a GPU yet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from models.backends import Models
from models.clip import crop_table, resized_for_clip
from models.resnet import rounded_up

# A batch of at least this many images, all of one size, needs no canvas: a new shape costs cuDNN
# some 25 ms, and a canvas more pixels.
IMAGES_OF_ONE_SIZE = 8

Pixels = Sequence[np.ndarray]  # uint8 (height, width, 3), RGB
ClipInputs = Sequence[np.ndarray | None]  # uint8 (224, 224, 3), RGB; None: made on the device
Rows = tuple[np.ndarray, ...]  # (n, dimension) per entry of DIMENSIONS, then the classes (n,)
Wait = Callable[[], Rows]  # the rows, once the device has computed them


class Runner:
    """Computes both models for images of several sizes at once.

    On a CPU, `launch` computes before it returns, with the same operations: so that all of it can
    be tested without a GPU.
    """

    def __init__(self, models: Models, device: torch.device, clip_batch_size: int) -> None:
        self._models, self._device = models, device
        self._clip_batch_size = clip_batch_size
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """The canvas of an image: images of equal canvases may share a batch."""
        if not self._models.takes_canvases:
            return height, width
        return rounded_up(height), rounded_up(width)

    def launch(self, images: Pixels, clip_inputs: ClipInputs) -> Wait:
        """Copy, compute and copy back. On a GPU this returns before the device has begun."""
        on_gpu = torch.cuda.device(self._device) if self._copies else contextlib.nullcontext()
        with torch.inference_mode(), on_gpu:
            rows = tuple(self._to_host(x).numpy() for x in self._compute(images, clip_inputs))
            if self._copies is None:
                return lambda: rows
            done = torch.cuda.Event(blocking=True)  # who waits for it leaves the core to others
            done.record()

        def wait() -> Rows:
            done.synchronize()
            return rows

        return wait

    def _compute(self, images: Pixels, clip_inputs: ClipInputs) -> tuple[Tensor, ...]:
        """The rows of a batch on the device, as of Rows."""
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        canvas, on_canvas = self.canvas(*sizes[0]), None
        if len(set(sizes)) == 1 and (len(sizes) >= IMAGES_OF_ONE_SIZE or canvas == sizes[0]):
            canvas = sizes[0]
        else:
            on_canvas = self._to_device(np.array(sizes, np.int64))
        pixels = self._on_canvases(images, canvas)
        inputs = self._clip_inputs(pixels, sizes, clip_inputs)
        *vectors, classes = self._models.resnet(pixels, on_canvas)
        parts = inputs.split(self._clip_batch_size)
        return *vectors, torch.cat([self._models.clip(part) for part in parts]), classes

    def _clip_inputs(
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]], clip_inputs: ClipInputs
    ) -> Tensor:
        """Those that are given, and the others made of the pixels."""
        given = {place: x for place, x in enumerate(clip_inputs) if x is not None}
        stacked = self._to_device(np.stack(list(given.values()))) if given else None
        if stacked is not None and len(given) == len(sizes):
            return stacked
        made = resized_for_clip(pixels, self._to_device(crop_table(sizes)))
        if stacked is not None:
            made[self._to_device(np.array(list(given)))] = stacked
        return made

    def _on_canvases(self, images: Pixels, canvas: tuple[int, int]) -> Tensor:
        """uint8 (n, height, width, 3), an image at the top left of each; the rest is not set."""
        host = self._host((len(images), *canvas, 3), torch.uint8)
        for place, image in zip(host.numpy(), images, strict=True):
            place[: image.shape[0], : image.shape[1]] = image
        return self._sent(host)

    def _to_device(self, array: np.ndarray) -> Tensor:
        given = torch.from_numpy(array)
        return self._sent(self._host(given.shape, given.dtype).copy_(given))

    def _host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of this machine: pinned if it is for a GPU. Torch keeps pinned memory for reuse,
        and waits itself until the copies from it are done.
        """
        return torch.empty(shape, dtype=dtype, pin_memory=self._copies is not None)

    def _sent(self, host: Tensor) -> Tensor:
        """The same on the device: on a GPU copied on a stream of its own."""
        if self._copies is None:
            return host
        compute = torch.cuda.current_stream()
        with torch.cuda.stream(self._copies):
            tensor = host.to(self._device, non_blocking=True)
        compute.wait_stream(self._copies)
        tensor.record_stream(compute)
        return tensor

    def _to_host(self, tensor: Tensor) -> Tensor:
        if self._copies is None:
            return tensor
        return self._host(tensor.shape, tensor.dtype).copy_(tensor, non_blocking=True)
