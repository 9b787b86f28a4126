"""Both models on one device: pixels in, unit vectors out. No other module of an ingest needs torch.

An image's vectors depend on that image alone, however images are batched.
"""

import contextlib
import importlib
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dataset.arrays import Embedding
from models import devices, resize
from models.clip_crop import CLIP_SIDE
from weights.clip import check_clip_weights
from weights.resnet50 import read_resnet_weights

BACKENDS = {
    "fused": "models.backends.fused",
    "transformers": "models.backends.transformers",
    "original": "models.backends.original",
}
# Smallest cosine to float32 on the sample image. `auto` promises 0.9999 for every image; the margin
# is there because the sample is only one.
MIN_COSINE = 0.99995
CLIP_BATCH_CPU, CLIP_BATCH_GPU = 4, 128
RECURRING = 8  # batches of one shape after which cuDNN may spend time on choosing its algorithms
SHAPES_KEPT = 1000

Tensors = tuple[torch.Tensor, ...]
Rows = tuple[np.ndarray, ...]  # (n, dimension) per entry of EMBEDDINGS, then the classes (n,)
Pixels = Sequence[np.ndarray]  # uint8 (height, width, 3), RGB
ClipInputs = Sequence[np.ndarray | None]  # uint8 (224, 224, 3), RGB; None: made on the device


class Models(NamedTuple):
    """Each takes uint8 (n, height, width, 3) RGB pixels on its device and returns float32 rows."""

    resnet: Callable[[torch.Tensor], Tensors]  # res5 (n, 2048), res4 (n, 1024), classes (n,)
    clip: Callable[[torch.Tensor], torch.Tensor]  # (n, 512)


def load_models(
    backend: str,
    arrays: dict[str, np.ndarray],
    clip: Path,
    device: torch.device,
    precision: str,
) -> tuple[Models, str]:
    """The two models of a backend, and their precision: for auto, the fastest that is exact enough.

    `arrays` come from read_resnet_weights. A precision is exact enough if the vectors of a sample
    image, computed with these weights, keep MIN_COSINE to those of float32. The original backend is
    for comparison: auto is float32 there.
    """
    module = importlib.import_module(BACKENDS[backend])  # only the one in use: some take seconds

    def load(name: str) -> Models:
        return Models(*module.load(arrays, clip, device, devices.PRECISIONS[name]))

    if precision != "auto":
        return load(precision), precision
    exact = load("float32")
    fastest = "float32" if backend == "original" else devices.fastest_precision(device)
    if fastest != "float32":
        models = load(fastest)
        if cosine_on_sample(models, exact, device) >= MIN_COSINE:
            return models, fastest
    return exact, "float32"


def cosine_on_sample(models: Models, exact: Models, device: torch.device) -> float:
    """The smallest cosine between the three vectors of a sample image by two pairs of models."""
    random = np.random.default_rng(0)
    waves = np.sin(np.arange(CLIP_SIDE) / np.array([5, 17, 40])[:, None])
    colours = waves[:, :, None] * waves[::-1, None, :] * 90 + 128
    noisy = colours.transpose(1, 2, 0) + random.normal(0, 12, (CLIP_SIDE, CLIP_SIDE, 3))
    pixels = torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))[None].to(device)
    pairs = zip(
        (*models.resnet(pixels)[:2], models.clip(pixels)),
        (*exact.resnet(pixels)[:2], exact.clip(pixels)),
        strict=True,
    )
    return min(float((one * other).sum()) for one, other in pairs)


class Batch:
    """A batch under way: Embedder.start began it, `finish` waits for it."""

    def __init__(
        self,
        embedder: "Embedder",
        images: Pixels,
        clip_inputs: ClipInputs,
        rows: Rows,
        done: torch.cuda.Event | None = None,
    ) -> None:
        self._embedder, self._images, self._clip_inputs = embedder, images, clip_inputs
        self._rows, self._done = rows, done

    def finish(self) -> list[Embedding]:
        """The embedding of each image, in order.

        An image whose values overflow in half precision is computed again in float32.
        """
        if self._done is not None:
            self._done.synchronize()
        if self._embedder.dtype != torch.float32:
            for row in self._overflown():
                image, clip_input = self._images[row], self._clip_inputs[row]
                exact = self._embedder.compute_in_float32([image], [clip_input])
                for array, again in zip(self._rows, exact, strict=True):
                    array[row] = again[0]
        *vectors, classes = self._rows
        return [
            Embedding(rows, int(number)) for *rows, number in zip(*vectors, classes, strict=True)
        ]

    def _overflown(self) -> list[int]:
        finite = [np.isfinite(array).reshape(len(array), -1).all(1) for array in self._rows]
        return np.flatnonzero(~np.logical_and.reduce(finite)).tolist()


class Embedder:
    """Both models on one device, to be called by `workers` threads at once."""

    def __init__(
        self,
        resnet_weights: Path,
        clip_weights: Path,
        *,
        backend: str = "fused",
        device: str = "auto",
        precision: str = "auto",
        resnet_batch_size: int | None = None,
        clip_batch_size: int | None = None,
        resnet_arrays: dict[str, np.ndarray] | None = None,
    ) -> None:
        """Load both models. `resnet_arrays` are those of the file, if it was read already.

        Raises:
            WeightsError, DeviceError: they cannot be loaded.
            ClickException: `original` is not installed.
        """
        self._device = devices.choose_device(device)
        self.device = str(self._device)
        devices.check_precision(precision, self._device)
        self.backend = backend
        self._resnet_weights = resnet_weights
        self._clip_weights = check_clip_weights(str(clip_weights))
        self._on_gpu = self._device.type == "cuda"
        self._resnet_batch_size = resnet_batch_size
        self._clip_batch_size = clip_batch_size or (
            CLIP_BATCH_GPU if self._on_gpu else CLIP_BATCH_CPU
        )
        # On a CPU each core computes an image of its own. On 2 free cores that is as fast as both
        # on one image, and 1.4 times as fast when other work wants the cores too.
        self.workers = 1 if self._on_gpu else devices.cores()
        self._threads_per_image = torch.get_num_threads() if self._on_gpu else 1
        torch.set_num_threads(self._threads_per_image)
        self._shapes: Counter[tuple[int, ...]] = Counter()
        self._cpu_models: Models | None = None  # in float32, for what a GPU cannot compute
        self._lock = threading.Lock()
        if self._on_gpu:
            self._copies = torch.cuda.Stream(self._device)
            # float32 means float32: TF32 has 10 bits of mantissa.
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        with torch.inference_mode():
            arrays = resnet_arrays or read_resnet_weights(resnet_weights)
            self._models, self.precision = load_models(
                backend, arrays, self._clip_weights, self._device, precision
            )
        self.dtype = devices.PRECISIONS[self.precision]
        # A CPU is no faster at it than Pillow, and float32 promises the numbers of Pillow's pixels.
        self.makes_clip_inputs = self._on_gpu and self.dtype != torch.float32
        self._budget = devices.PixelBudget(
            devices.pixels_that_fit(torch.device("cpu"), torch.float32)
        )

    @property
    def bfloat16_would_be_faster(self) -> bool:
        """Whether this CPU computes in float32 what it could compute faster in bfloat16."""
        in_use = self.backend, self._device.type, self.precision
        return in_use == ("fused", "cpu", "float32") and devices.bfloat16_is_faster()

    @property
    def max_pixels(self) -> int:
        """Pixels of the largest image that fits in memory; the CPU takes what the GPU cannot."""
        on_gpu = devices.pixels_that_fit(self._device, self.dtype) if self._on_gpu else 0
        return max(self._budget.capacity, on_gpu)

    def group(self, height: int, width: int) -> Hashable:
        """Images of equal groups may share a batch: on a GPU those of one size, on a CPU all."""
        return (height, width) if self._on_gpu else None

    def batch_size(self, height: int, width: int) -> int:
        """How many images of a size to give to `start` at once: what was asked for, or less.

        On a GPU BATCH_PIXELS, if they fit into MEMORY_SHARE of its free memory. On a CPU ResNet
        takes one image at a time, and the batch is CLIP's.
        """
        if not self._on_gpu:
            return self._clip_batch_size
        fitting = devices.pixels_that_fit(self._device, self.dtype) // (height * width)
        wanted = self._resnet_batch_size or min(
            devices.LARGEST_BATCH, devices.BATCH_PIXELS // (height * width)
        )
        return max(1, min(wanted, fitting))

    def start(self, images: Pixels, clip_inputs: ClipInputs) -> Batch:
        """Begin with images of one group.

        On a GPU this returns at once, which leaves time to prepare the next batch. Where the memory
        of the GPU is short, the batch is computed in halves, and a single image on the CPU.

        Raises:
            MemoryError: main memory is too small.
        """
        if not self._on_gpu:
            rows = self._compute_on_cpu(self._models, images, clip_inputs)
            return Batch(self, images, clip_inputs, rows)
        try:
            return Batch(self, images, clip_inputs, *self._launch(images, clip_inputs))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        torch.cuda.empty_cache()
        if len(images) == 1:
            return Batch(self, images, clip_inputs, self.compute_in_float32(images, clip_inputs))
        half = len(images) // 2
        # One half after the other: together they would need the memory that was not there.
        halves = [
            self.start(images[part], clip_inputs[part]).finish()
            for part in (slice(half), slice(half, None))
        ]
        return Batch(self, images, clip_inputs, _rows_of([*halves[0], *halves[1]]))

    def compute_in_float32(self, images: Pixels, clip_inputs: ClipInputs) -> Rows:
        """The rows of images on the CPU in float32, whatever the device and precision in use."""
        with self._lock, torch.inference_mode():
            if self._cpu_models is None:
                arrays = read_resnet_weights(self._resnet_weights)
                self._cpu_models, _ = load_models(
                    self.backend, arrays, self._clip_weights, torch.device("cpu"), "float32"
                )
        return self._compute_on_cpu(self._cpu_models, images, clip_inputs)

    def _compute_on_cpu(self, models: Models, images: Pixels, clip_inputs: ClipInputs) -> Rows:
        """ResNet image by image, which on a CPU is as fast as a batch, then CLIP for all."""
        torch.set_num_threads(self._threads_per_image)  # a setting of each thread
        resnet, inputs = [], []
        with torch.inference_mode(), _memory_errors():
            for image, clip_input in zip(images, clip_inputs, strict=True):
                pixels = torch.tensor(image)[None]
                with self._budget.spend(image.shape[0] * image.shape[1]):
                    resnet.append(models.resnet(pixels))
                    inputs.append(self._clip_input(pixels, clip_input))
            clip = self._clip_in_parts(models, torch.cat(inputs))
        *vectors, classes = (torch.cat(parts) for parts in zip(*resnet, strict=True))
        return tuple(tensor.numpy() for tensor in (*vectors, clip, classes))

    def _clip_input(self, pixels: torch.Tensor, clip_input: np.ndarray | None) -> torch.Tensor:
        if clip_input is not None:
            return torch.tensor(clip_input)[None]
        table = resize.crop_table([(pixels.shape[1], pixels.shape[2])])
        return resize.clip_inputs(pixels, torch.from_numpy(table))

    def _clip_in_parts(self, models: Models, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([models.clip(part) for part in inputs.split(self._clip_batch_size)])

    def _launch(self, images: Pixels, clip_inputs: ClipInputs) -> tuple[Rows, torch.cuda.Event]:
        """Copy from pinned memory on a stream of its own, compute, copy back; return at once.

        The rows hold numbers once the event has happened.
        """
        with torch.inference_mode(), torch.cuda.device(self._device):
            compute = torch.cuda.current_stream()
            pixels = self._copied(images, compute)
            with torch.backends.cudnn.flags(
                enabled=True, benchmark=self._recurs(tuple(pixels.shape)), allow_tf32=False
            ):
                *vectors, classes = self._models.resnet(pixels)
                given = [clip_input for clip_input in clip_inputs if clip_input is not None]
                if len(given) == len(images):
                    inputs = self._copied(given, compute)
                else:
                    table = resize.crop_table([image.shape[:2] for image in images])
                    crops = torch.from_numpy(table).pin_memory()
                    inputs = resize.clip_inputs(pixels, crops.to(self._device, non_blocking=True))
                clip = self._clip_in_parts(self._models, inputs)
            results = [
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
                    tensor, non_blocking=True
                )
                for tensor in (*vectors, clip, classes)
            ]
            return tuple(result.numpy() for result in results), compute.record_event()

    def _copied(self, images: Pixels, compute: torch.cuda.Stream) -> torch.Tensor:
        """Images of one size as one tensor on the GPU, by way of pinned memory."""
        host = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=True)
        np.stack(images, out=host.numpy())
        with torch.cuda.stream(self._copies):
            pixels = host.to(self._device, non_blocking=True)
        compute.wait_stream(self._copies)
        pixels.record_stream(compute)
        return pixels

    def _recurs(self, shape: tuple[int, ...]) -> bool:
        """Whether batches of this shape have come RECURRING times; remembers SHAPES_KEPT shapes."""
        with self._lock:
            if shape not in self._shapes and len(self._shapes) >= SHAPES_KEPT:
                self._shapes.clear()
            self._shapes[shape] += 1
            return self._shapes[shape] > RECURRING


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Raise torch's error of a full main memory, for which it has no type, as MemoryError."""
    try:
        yield
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error):
            raise MemoryError("main memory is too small") from error
        raise


def _rows_of(embeddings: Sequence[Embedding]) -> Rows:
    vectors = (np.stack(rows) for rows in zip(*(e.vectors for e in embeddings), strict=True))
    return *vectors, np.array([e.imagenet_class for e in embeddings])


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU ran out of memory: torch has a type for it, cuDNN and cuBLAS have words."""
    words = ("out of memory", "ALLOC_FAILED", "unable to find an engine")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
