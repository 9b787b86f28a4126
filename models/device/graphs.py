"""CUDA graphs: a batch whose shapes recur is launched by one call instead of some 590.

A graph is captured once, reads its inputs from tensors of its own and leaves its outputs in others.
All graphs share one pool of memory for what is between these: they run one after the other, on one
stream. None of this has run on a GPU yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

AFTER = 16  # launches of the same shapes: by then the others would have paid for a capture
MOST = 64  # graphs; COCO's sizes have 39 canvases
TOLERANCE = 1e-3  # largest difference of values of unit vectors in half precision

Tensors = tuple[Tensor, ...]
Replay = Callable[[], None]


class Inputs(NamedTuple):
    """What a batch is computed from, on the device; None where a batch does not have it."""

    pixels: Tensor  # uint8 (n, height, width, 3)
    sizes: Tensor | None  # int64 (n, 2): height and width, of images on larger canvases
    crops: Tensor | None  # of models/resize.py, where CLIP's inputs are made on the device
    given: Tensor | None  # CLIP's inputs that were made elsewhere, uint8 (m, 224, 224, 3)
    places: Tensor | None  # int64 (m,): their images, if m < n

    @property
    def shapes(self) -> tuple[torch.Size | None, ...]:
        return tuple(None if tensor is None else tensor.shape for tensor in self)


class Graph(NamedTuple):
    """A captured batch: `replay` computes `outputs` from `inputs`."""

    inputs: Inputs
    outputs: Tensors
    replay: Replay

    def run(self, inputs: Inputs) -> Tensors:
        """The outputs for other inputs of the same shapes, valid until the next run."""
        for own, given in zip(self.inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        self.replay()
        return self.outputs


class Graphs:
    """Computes batches: by a graph where there is one, else by plain launches."""

    def __init__(
        self,
        compute: Callable[[Inputs], Tensors],
        capture: Callable[[Callable[[], Tensors]], tuple[Replay, Tensors]],
        fits: Callable[[Inputs], bool],
    ) -> None:
        """
        Args:
            compute: what is captured; it may not wait for the device.
            capture: as `capture_on_gpu`.
            fits: whether there is memory to spare for a graph of these inputs.
        """
        self._compute, self._capture, self._fits = compute, capture, fits
        self._seen: Counter[tuple[torch.Size | None, ...]] = Counter()
        self._graphs: dict[tuple[torch.Size | None, ...], Graph] = {}
        self.refusal: str | None = None  # why no more graphs are captured, if not as there are MOST

    def run(self, inputs: Inputs) -> Tensors:
        """The outputs, valid until the next run of the same shapes."""
        shapes = inputs.shapes
        if graph := self._graphs.get(shapes):
            return graph.run(inputs)
        outputs = self._compute(inputs)
        if self.refusal is None and len(self._graphs) < MOST:
            self._seen[shapes] += 1
            if self._seen[shapes] % AFTER == 0 and self._fits(inputs):
                self._add(inputs, outputs)
        return outputs

    def _add(self, inputs: Inputs, expected: Tensors) -> None:
        """Capture a graph, and keep it if it gives what plain launches gave."""
        own = Inputs._make(None if tensor is None else tensor.clone() for tensor in inputs)
        try:
            replay, outputs = self._capture(lambda: self._compute(own))
            replay()
            *vectors, _ = zip(outputs, expected, strict=True)  # a class may be a close decision
            agree = all(
                torch.allclose(one, other, rtol=0, atol=TOLERANCE, equal_nan=True)
                for one, other in vectors
            )
        except RuntimeError as error:
            self.clear(f"torch says: {str(error).partition(chr(10))[0].rstrip('.')}")
            return
        if not agree:
            self.clear("one gave other numbers")
            return
        self._graphs[inputs.shapes] = Graph(own, outputs, replay)

    def clear(self, reason: str) -> bool:
        """Give back the memory of all graphs, and capture no more; whether there were any."""
        had_any = bool(self._graphs)
        self._graphs.clear()
        self.refusal = self.refusal or reason
        return had_any


class GpuCapture:
    """Captures graphs on the current GPU, in one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensors]) -> tuple[Replay, Tensors]:
        """Capture what `compute` launches; returns what runs it, and its outputs.

        Raises:
            RuntimeError: something in it cannot be captured, or memory is short.
        """
        graph = torch.cuda.CUDAGraph()
        # The outer context restores the stream when a capture fails, which torch's own does not.
        # Other threads of this process use no GPU, but may use pinned memory.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            outputs = compute()
        return graph.replay, outputs
