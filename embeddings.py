"""The two models: pixels in, unit vectors out. The one module of the ingest that needs torch."""

import functools
import importlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from common.memory import ask_for_large_pages
from models import devices, resize
from models.clip_crop import CLIP_SIDE
from weights.clip import check_clip_weights
from weights.resnet50 import read_resnet_weights

BACKENDS = {
    "fused": "models.backends.fused",
    "transformers": "models.backends.transformers",
    "original": "models.backends.original",
}
MIN_COSINE = 0.99995  # of the 0.9999 that auto promises: one image stands for all
CLIP_BATCH_CPU, CLIP_BATCH_GPU = 4, 128
RECURRING = 8  # batches of one shape after which cuDNN may spend time on choosing its algorithms
SHAPES_KEPT = 1000
RESIZES_KEPT = 64  # sizes whose weights for CLIP's input are kept, some 1 MB each

Result = TypeVar("Result")
Tensors = tuple[torch.Tensor, ...]


class ResNetRows(NamedTuple):
    imagenet: np.ndarray  # float32 (n, 2048), unit length: res5
    imagenet_early: np.ndarray  # float32 (n, 1024), unit length: res4
    classes: np.ndarray  # int64 (n,): ImageNet class


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
    """The two models of a backend and their precision, which for auto is the fastest good one.

    `arrays` are those of read_resnet_weights. Good is a precision in which a sample image's
    vectors, by these very weights, keep MIN_COSINE to those of float32. The original backend exists
    for comparison and takes float32.
    """
    module = importlib.import_module(BACKENDS[backend])  # only what is used: some take seconds

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


class Embedder:
    """Both models on one device, to be called by `workers` threads at once.

    `start_resnet` and `start_clip` return a function that waits for the device and returns the
    rows; on a GPU that leaves time to prepare the next batch. An image's vectors depend on that
    image alone, however images are batched.
    """

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
        """Load both models; `resnet_arrays` are the file's, where it was read already.

        Raises:
            WeightsError, DeviceError: they cannot be loaded.
            ClickException: `original` is not installed.
        """
        ask_for_large_pages()
        self._device = devices.choose_device(device)
        self.device = str(self._device)
        devices.check_precision(precision, self._device)
        self.backend = backend
        self._resnet_weights = resnet_weights
        self._clip_weights = check_clip_weights(str(clip_weights))
        self._on_gpu = self._device.type == "cuda"
        self._resnet_batch_size = resnet_batch_size
        self.clip_batch_size = clip_batch_size or (
            CLIP_BATCH_GPU if self._on_gpu else CLIP_BATCH_CPU
        )
        # Each core computes an image of its own: on 2 free cores as fast as both on one image, and
        # 1.4 times as fast when decoding and other processes want the cores too (nobody waits for
        # the slower half).
        self.workers = 1 if self._on_gpu else devices.cores()
        self._threads_of_an_image = torch.get_num_threads() if self._on_gpu else 1
        torch.set_num_threads(self._threads_of_an_image)
        self._resize_weights = functools.lru_cache(RESIZES_KEPT)(resize.weights_for)
        self._shapes: Counter[tuple[int, ...]] = Counter()
        self._fallback: Models | None = None
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
        # A CPU is no faster at it than Pillow; in float32 the numbers are those of Pillow's pixels.
        self.makes_clip_inputs = self._on_gpu and self.dtype != torch.float32
        self._budget = devices.PixelBudget(
            devices.pixels_that_fit(torch.device("cpu"), torch.float32)
        )

    @property
    def max_pixels(self) -> int:
        """The largest image that fits in memory; one too large for the GPU runs on the CPU."""
        on_gpu = devices.pixels_that_fit(self._device, self.dtype) if self._on_gpu else 0
        return max(self._budget.capacity, on_gpu)

    def resnet_batch_size(self, height: int, width: int) -> int:
        """How many images of a size to give to start_resnet at once; what was asked for, or less.

        On a GPU BATCH_PIXELS, if they fit into MEMORY_SHARE of its free memory. On a CPU 1.
        """
        if not self._on_gpu:
            return self._resnet_batch_size or 1
        fitting = devices.pixels_that_fit(self._device, self.dtype) // (height * width)
        wanted = self._resnet_batch_size or min(
            devices.LARGEST_BATCH, devices.BATCH_PIXELS // (height * width)
        )
        return max(1, min(wanted, fitting))

    def start_resnet(self, images: Sequence[np.ndarray]) -> Callable[[], ResNetRows]:
        """Begin with n uint8 (height, width, 3) RGB images of one size."""
        finish = self._begin(lambda models, pixels: models.resnet(pixels), images)
        return lambda: ResNetRows(*finish())

    def start_clip(self, inputs: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        """Begin with n uint8 (224, 224, 3) RGB images; the result is float32 (n, 512)."""
        finish = self._begin(lambda models, pixels: (models.clip(pixels),), inputs)
        return lambda: finish()[0]

    def start_both(self, images: Sequence[np.ndarray]) -> Callable[[], tuple[np.ndarray, ...]]:
        """Begin with n images as for start_resnet; the result is its rows and start_clip's.

        CLIP's inputs are made on the device, of images not taller than images.TALL widths.
        """
        return self._begin(self._both, images)

    def _begin(
        self, compute: Callable[[Models, torch.Tensor], Tensors], images: Sequence[np.ndarray]
    ) -> "Pending":
        def start(part: Sequence[np.ndarray], models: Models, device: torch.device) -> Pending:
            return self._start(functools.partial(compute, models), part, device)

        return self._finite(start, images, self._with_memory(start, images))

    def _both(self, models: Models, pixels: torch.Tensor) -> Tensors:
        weights = self._resize_weights(*pixels.shape[1:3], pixels.device)
        inputs = resize.clip_inputs(pixels, weights).split(self.clip_batch_size)
        return *models.resnet(pixels), torch.cat([models.clip(part) for part in inputs])

    def _finite(
        self, start: "Starter", images: Sequence[np.ndarray], finish: "Pending"
    ) -> "Pending":
        """The same, with rows that overflow in half precision computed again in float32."""
        if self.dtype == torch.float32:
            return finish

        def finite() -> tuple[np.ndarray, ...]:
            arrays = finish()
            overflown = {row for array in arrays for row in np.argwhere(~np.isfinite(array))[:, 0]}
            for row in overflown:
                again = start([images[row]], self._cpu_models(), torch.device("cpu"))()
                for array, exact in zip(arrays, again, strict=True):
                    array[row] = exact[0]
            return arrays

        return finite

    def _with_memory(self, start: "Starter", images: Sequence[np.ndarray]) -> "Pending":
        """Start on the device; where its memory is short in halves, and one image on the CPU."""
        try:
            return start(images, self._models, self._device)
        except RuntimeError as error:
            if not self._on_gpu or not is_out_of_memory(error):
                raise
        torch.cuda.empty_cache()
        if len(images) == 1:
            return start(images, self._cpu_models(), torch.device("cpu"))
        half = len(images) // 2
        # One half after the other: together they would need the memory that was not there.
        parts = [self._with_memory(start, part)() for part in (images[:half], images[half:])]
        joined = tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return lambda: joined

    def _cpu_models(self) -> Models:
        with self._lock, torch.inference_mode():
            if self._fallback is None:
                arrays = read_resnet_weights(self._resnet_weights)
                self._fallback, _ = load_models(
                    self.backend, arrays, self._clip_weights, torch.device("cpu"), "float32"
                )
            return self._fallback

    def _start(
        self,
        model: Callable[[torch.Tensor], Tensors],
        images: Sequence[np.ndarray],
        device: torch.device,
    ) -> "Pending":
        with torch.inference_mode():
            if device.type == "cuda":
                return self._start_on_gpu(model, images)
            height, width, _ = images[0].shape
            with self._budget.spend(height * width):
                torch.set_num_threads(self._threads_of_an_image)  # the setting is a thread's own
                try:
                    tensors = model(torch.from_numpy(np.stack(images)))
                except RuntimeError as error:
                    if "DefaultCPUAllocator" in str(error):  # torch has no type for it
                        raise MemoryError("main memory is too small") from error
                    raise
            arrays = tuple(tensor.numpy() for tensor in tensors)
            return lambda: arrays

    def _start_on_gpu(
        self, model: Callable[[torch.Tensor], Tensors], images: Sequence[np.ndarray]
    ) -> "Pending":
        """Copy from pinned memory on a stream of its own, compute, copy back; return at once."""
        height, width, channels = images[0].shape
        shape = (len(images), height, width, channels)
        host = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        np.stack(images, out=host.numpy())
        with torch.cuda.device(self._device):
            compute = torch.cuda.current_stream()
            with torch.cuda.stream(self._copies):
                pixels = host.to(self._device, non_blocking=True)
            compute.wait_stream(self._copies)
            pixels.record_stream(compute)
            with torch.backends.cudnn.flags(
                enabled=True, benchmark=self._recurs(shape), allow_tf32=False
            ):
                tensors = model(pixels)
            results = [
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
                    tensor, non_blocking=True
                )
                for tensor in tensors
            ]
            done = compute.record_event()

        def finish() -> tuple[np.ndarray, ...]:
            done.synchronize()
            return tuple(result.numpy() for result in results)

        return finish

    def _recurs(self, shape: tuple[int, ...]) -> bool:
        """Whether batches of this shape have come RECURRING times; remembers SHAPES_KEPT shapes."""
        with self._lock:
            if shape not in self._shapes and len(self._shapes) >= SHAPES_KEPT:
                self._shapes.clear()
            self._shapes[shape] += 1
            return self._shapes[shape] > RECURRING


Pending = Callable[[], tuple[np.ndarray, ...]]
Starter = Callable[[Sequence[np.ndarray], Models, torch.device], Pending]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU ran out of memory: torch has a type for it, cuDNN and cuBLAS have words."""
    words = ("out of memory", "ALLOC_FAILED", "unable to find an engine")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
