"""Batches of both models on one device. It owns the device's streams, events and pinned memory.

Pixels travel from pinned memory on a stream of their own, results come back into pinned memory, and
an event tells when they are there. Nothing waits for the device but `Launched.wait`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models import resize
from models.canvas import rounded_up
from models.device import devices
from models.device.graphs import GpuCapture, Graphs, Inputs, Tensors
from models.pair import Models

ONE_SIZE_FROM = 8  # images of one size that get no canvas: so many show that their size recurs

Pixels = Sequence[np.ndarray]  # uint8 (height, width, 3), RGB
ClipInputs = Sequence[np.ndarray | None]  # uint8 (224, 224, 3), RGB; None: made on the device
Rows = tuple[np.ndarray, ...]  # (n, dimension) per entry of EMBEDDINGS, then the classes (n,)


class Launched(NamedTuple):
    """A batch under way. The rows hold numbers after `wait`."""

    rows: Rows
    done: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Wait for the device."""
        if self.done is not None:
            self.done.synchronize()


class Runner:
    """Computes both models for images of several sizes at once.

    On a CPU, `launch` computes before it returns, with the same operations: so that all of it can
    be tested without a GPU.
    """

    def __init__(
        self,
        models: Models,
        device: torch.device,
        clip_batch_size: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._models, self._device, self._dtype = models, device, dtype
        self._clip_batch_size = clip_batch_size
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        # Only the built-in models are known to launch without waiting for the device.
        self.graphs: Graphs | None = None
        if self._copies and models.takes_canvases:
            self.graphs = Graphs(self._compute, GpuCapture(), self._has_room_for)

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """The canvas of an image: images of equal canvases may share a batch."""
        if not self._models.takes_canvases:
            return height, width
        return rounded_up(height), rounded_up(width)

    def launch(self, images: Pixels, clip_inputs: ClipInputs) -> Launched:
        """Copy, compute and copy back. On a GPU this returns before the device has begun."""
        with torch.inference_mode(), self._device_context():
            inputs = self._inputs(images, clip_inputs)
            tensors = self.graphs.run(inputs) if self.graphs else self._compute(inputs)
            rows = tuple(self._copied_back(tensor).numpy() for tensor in tensors)
            if self._copies is None:
                return Launched(rows)
            done = torch.cuda.Event(blocking=True)  # who waits for it leaves the core to others
            done.record()
            return Launched(rows, done)

    def drop_graphs(self, reason: str) -> bool:
        """Give back the memory of CUDA graphs and capture no more; whether there were any."""
        if self.graphs is None:
            return False
        with self._device_context():
            if self._copies is not None:
                torch.cuda.synchronize()  # a graph may be running
            return self.graphs.clear(reason)

    def _inputs(self, images: Pixels, clip_inputs: ClipInputs) -> Inputs:
        """Everything that a batch is computed from, on its way to the device."""
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        if len(set(sizes)) == 1 and (len(images) >= ONE_SIZE_FROM or self._fills(sizes[0])):
            pixels, on_canvas = self._on_canvases(images, sizes[0]), None
        else:
            pixels = self._on_canvases(images, self.canvas(*sizes[0]))
            on_canvas = self._on_device(np.array(sizes, np.int64))
        given = [clip_input for clip_input in clip_inputs if clip_input is not None]
        places = [place for place, given in enumerate(clip_inputs) if given is not None]
        return Inputs(
            pixels,
            on_canvas,
            self._on_device(resize.crop_table(sizes)) if len(given) < len(sizes) else None,
            self._on_device(np.stack(given)) if given else None,
            self._on_device(np.array(places)) if 0 < len(given) < len(sizes) else None,
        )

    def _compute(self, inputs: Inputs) -> Tensors:
        """Launch both models. What is launched depends on the shapes of the inputs alone."""
        *vectors, classes = self._models.resnet(inputs.pixels, inputs.sizes)
        scaled = self._clip_inputs(inputs)
        clip = torch.cat([self._models.clip(part) for part in scaled.split(self._clip_batch_size)])
        return *vectors, clip, classes

    def _has_room_for(self, inputs: Inputs) -> bool:
        """Whether a graph of these inputs leaves most of the free memory to other batches."""
        fitting = devices.pixels_that_fit(self._device, self._dtype)
        return inputs.pixels.numel() // 3 <= fitting // 4

    def _fills(self, size: tuple[int, int]) -> bool:
        return self.canvas(*size) == size

    def _clip_inputs(self, inputs: Inputs) -> Tensor:
        """Those that are given, and the others made of the pixels."""
        if inputs.crops is None:
            assert inputs.given is not None
            return inputs.given
        made = resize.clip_inputs(inputs.pixels, inputs.crops)
        if inputs.places is not None and inputs.given is not None:
            made[inputs.places] = inputs.given
        return made

    def _on_canvases(self, images: Pixels, canvas: tuple[int, int]) -> Tensor:
        """uint8 (n, height, width, 3), an image at the top left of each; the rest is anything."""
        host = self._host((len(images), *canvas, 3), torch.uint8)
        for place, image in zip(host.numpy(), images, strict=True):
            place[: image.shape[0], : image.shape[1]] = image
        return self._sent(host)

    def _on_device(self, array: np.ndarray) -> Tensor:
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

    def _copied_back(self, tensor: Tensor) -> Tensor:
        if self._copies is None:
            return tensor
        return self._host(tensor.shape, tensor.dtype).copy_(tensor, non_blocking=True)

    @contextlib.contextmanager
    def _device_context(self) -> Iterator[None]:
        if self._copies is None:
            yield
            return
        # Never `benchmark`: with many shapes, trying algorithms takes longer than it saves.
        with (
            torch.cuda.device(self._device),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False),
        ):
            yield
