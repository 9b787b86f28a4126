"""Both models on one device: pixels in, unit vectors out. No other module of an ingest needs torch.

An image's vectors depend on that image alone, however images are batched. `load_models` decides
which precision auto is, `Embedder.batch_size` how many images share a batch.
"""

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.precision import Precision, fastest_precision
from common.terminal import count
from dataset.arrays import Embedding
from models import devices
from models.backends import BACKENDS, Models
from models.clip import crop_table, resized_for_clip
from models.clip_crop import CLIP_SIDE
from models.runner import ClipInputs, Pixels, Rows, Runner, Wait
from weights.clip import check_clip_weights
from weights.resnet50 import read_resnet_weights

# Smallest cosine to float32 on the sample image. `auto` promises 0.9999 for every image; the margin
# is there because the sample is only one.
MIN_COSINE = 0.99995
HEADROOM = 16  # how far the sample's largest activation must stay below what a precision can hold
CLIP_BATCH_CPU, CLIP_BATCH_GPU = 4, 128


class LoadedModels(NamedTuple):
    models: Models
    precision: Precision
    reason: str | None = None  # why auto did not choose the fastest precision


def load_models(
    backend: str,
    arrays: dict[str, np.ndarray],
    clip: Path,
    device: torch.device,
    precision: Precision | None,
) -> LoadedModels:
    """Both models of a backend, and their precision: for None, the fastest that is exact enough.

    `arrays` come from read_resnet_weights. A precision is exact enough if, computed with these
    weights, the vectors of a sample image keep MIN_COSINE to those of float32, and no layer comes
    near to its range. The original backend is for comparison: auto is float32 there.
    """

    def load(precision: Precision) -> Models:
        return BACKENDS[backend](arrays, clip, device, devices.DTYPES[precision])

    if precision is not None:
        return LoadedModels(load(precision), precision)
    fastest = fastest_precision(device.type == "cuda")
    exact = load(Precision.FLOAT32)
    if fastest is Precision.FLOAT32 or exact.largest_activation is None:
        return LoadedModels(exact, Precision.FLOAT32)
    sample = sample_image().to(device)
    largest = exact.largest_activation(sample)
    limit = torch.finfo(devices.DTYPES[fastest]).max / HEADROOM
    if largest <= limit:
        models = load(fastest)
        cosine = cosine_on_sample(models, exact, sample)
        if cosine >= MIN_COSINE:
            return LoadedModels(models, fastest)
        problem = f"its cosine to float32 is {cosine:.6f}, below {MIN_COSINE}"
    else:  # or NaN
        problem = f"a layer reaches {largest:,.0f}, and {limit:,.0f} is the limit"
    reason = f"{fastest} was not chosen: with these weights {problem}."
    return LoadedModels(exact, Precision.FLOAT32, reason)


def sample_image() -> torch.Tensor:
    """Waves and noise, uint8 (1, 224, 224, 3)."""
    random = np.random.default_rng(0)
    waves = np.sin(np.arange(CLIP_SIDE) / np.array([5, 17, 40])[:, None])
    colours = waves[:, :, None] * waves[::-1, None, :] * 90 + 128
    noisy = colours.transpose(1, 2, 0) + random.normal(0, 12, (CLIP_SIDE, CLIP_SIDE, 3))
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))[None]


def cosine_on_sample(models: Models, exact: Models, pixels: torch.Tensor) -> float:
    """The smallest cosine between the three vectors of an image by two pairs of models."""
    pairs = zip(
        (*models.resnet(pixels)[:2], models.clip(pixels)),
        (*exact.resnet(pixels)[:2], exact.clip(pixels)),
        strict=True,
    )
    return min(float((one * other).sum()) for one, other in pairs)


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
            IngestError: `original` is not installed.
        """
        self._device = devices.choose_device(device)
        self.device = str(self._device)
        chosen = devices.choose_precision(precision, self._device)
        self.backend = backend
        self._resnet_weights = resnet_weights
        self._clip_weights = check_clip_weights(str(clip_weights))
        self._on_gpu = self._device.type == "cuda"
        self._resnet_batch_size = resnet_batch_size
        default = CLIP_BATCH_GPU if self._on_gpu else CLIP_BATCH_CPU
        self._clip_batch_size = clip_batch_size or default
        # On a CPU each core computes an image of its own. On 2 free cores that is as fast as both
        # on one image, and 1.4 times as fast when other work wants the cores too.
        self.workers = 1 if self._on_gpu else devices.cores()
        self._threads_per_image = torch.get_num_threads() if self._on_gpu else 1
        torch.set_num_threads(self._threads_per_image)
        self._cpu_models: Models | None = None  # in float32, for what a GPU cannot compute
        self._lock = threading.Lock()
        if self._on_gpu:
            # float32 means float32: TF32 has 10 bits of mantissa. `benchmark` stays off: with many
            # shapes, trying algorithms takes longer than it saves.
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        with torch.inference_mode(), devices.gpu_errors(self._device):
            arrays = resnet_arrays or read_resnet_weights(resnet_weights)
            self._models, self.precision, reason = load_models(
                backend, arrays, self._clip_weights, self._device, chosen
            )
        self.dtype = devices.DTYPES[self.precision]
        # A CPU is no faster at it than Pillow, and float32 promises the numbers of Pillow's pixels.
        self.makes_clip_inputs = self._on_gpu and self.dtype != torch.float32
        fitting = devices.pixels_that_fit(torch.device("cpu"), torch.float32)
        self._budget = devices.PixelBudget(fitting)
        self.waiting_pixels = devices.waiting_pixels(self._device)
        self._runner = Runner(self._models, self._device, self._clip_batch_size)
        # Of a batch; lowered when memory runs out.
        self._gpu_pixels = devices.pixels_that_fit(self._device, self.dtype) if self._on_gpu else 0
        # Of the largest image that fits in memory; the CPU takes what the GPU cannot.
        self.max_pixels = max(fitting, self._gpu_pixels)
        self._overflown = self._on_cpu_instead = 0  # images computed again, or not on the GPU
        self.remarks = self._remarks(device, reason)

    def _remarks(self, device: str, reason: str | None) -> list[str]:
        """What is slower than it could be, a sentence each."""
        remarks = [reason] if reason else []
        if device == "auto" and devices.has_unused_gpu():
            remarks.append(f"This machine has an NVIDIA GPU, but {devices.why_no_gpu()}")
        if self._models.plain_kinds:
            kinds = ", ".join(self._models.plain_kinds)
            remarks.append(f"Convolutions that the fused operators here cannot compute: {kinds}.")
        return remarks

    def exceptions(self) -> list[str]:
        """Which images took another way than the others, a sentence each."""
        sentences = []
        if self._overflown:
            sentences.append(
                f"Computed again in float32, after an overflow in {self.precision}: "
                f"{count(self._overflown, 'image')}."
            )
        if self._on_cpu_instead:
            sentences.append(
                f"Computed on the CPU, because the memory of {self.device} is too small: "
                f"{count(self._on_cpu_instead, 'image')}."
            )
        return sentences

    @property
    def bfloat16_would_be_faster(self) -> bool:
        """Whether this CPU computes in float32 what it could compute faster in bfloat16."""
        in_use = self.backend, self._device.type, self.precision
        return in_use == ("fused", "cpu", Precision.FLOAT32) and devices.bfloat16_is_faster()

    def group(self, height: int, width: int) -> Hashable:
        """Images of equal groups may share a batch: on a GPU those of one canvas, on a CPU all."""
        return self._runner.canvas(height, width) if self._on_gpu else None

    def batch_size(self, height: int, width: int) -> int:
        """How many images of a size to give to `start` at once: what was asked for, or less.

        On a GPU BATCH_PIXELS, if they fit into MEMORY_SHARE of its free memory. On a CPU ResNet
        takes one image at a time, and the batch is CLIP's.
        """
        if not self._on_gpu:
            return self._clip_batch_size
        rows, columns = self._runner.canvas(height, width)
        fitting = self._gpu_pixels // (rows * columns)
        wanted = self._resnet_batch_size or min(
            devices.LARGEST_BATCH, devices.BATCH_PIXELS // (rows * columns)
        )
        return max(1, min(wanted, fitting))

    def start(self, images: Pixels, clip_inputs: ClipInputs) -> Callable[[], list[Embedding]]:
        """Begin with images of one group; returns the function that waits for their embeddings.

        A GPU computes meanwhile, which leaves time to prepare the next batch. Where its memory is
        short, that function computes the batch in halves, and a single image on the CPU. Without a
        GPU it computes all. It raises MemoryError where main memory is too small.
        """
        if not self._on_gpu:
            wait: Wait = partial(self._compute_on_cpu, self._models, images, clip_inputs)
            return partial(self._finish, images, clip_inputs, wait)
        try:
            wait = self._runner.launch(images, clip_inputs)
        except RuntimeError as error:
            if not devices.is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            half = len(images) // 2
            if half:
                # Later batches are no larger: another process may have taken the memory.
                rows, columns = self._runner.canvas(*images[0].shape[:2])
                self._gpu_pixels = min(self._gpu_pixels, half * rows * columns)
                return partial(self._finish_halves, images, clip_inputs, half)
            self._on_cpu_instead += 1
            wait = partial(self._compute_in_float32, images, clip_inputs)
        return partial(self._finish, images, clip_inputs, wait)

    def _finish_halves(self, images: Pixels, clip_inputs: ClipInputs, half: int) -> list[Embedding]:
        """One half after the other: together they would need the memory that was not there."""
        first = self.start(images[:half], clip_inputs[:half])()
        return [*first, *self.start(images[half:], clip_inputs[half:])()]

    def _finish(self, images: Pixels, clip_inputs: ClipInputs, wait: Wait) -> list[Embedding]:
        """Wait; compute again in float32 the images whose values overflow in half precision."""
        rows = wait()
        if self.dtype != torch.float32:
            for place in _overflown(rows):
                exact = self._compute_in_float32([images[place]], [clip_inputs[place]])
                self._overflown += 1
                for array, again in zip(rows, exact, strict=True):
                    array[place] = again[0]
        *vectors, classes = rows
        return [Embedding(row, int(number)) for *row, number in zip(*vectors, classes, strict=True)]

    def _compute_in_float32(self, images: Pixels, clip_inputs: ClipInputs) -> Rows:
        """The rows of images on the CPU in float32, whatever the device and precision in use."""
        with self._lock, torch.inference_mode():
            if self._cpu_models is None:
                arrays = read_resnet_weights(self._resnet_weights)
                load, device = BACKENDS[self.backend], torch.device("cpu")
                self._cpu_models = load(arrays, self._clip_weights, device, torch.float32)
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
            parts = torch.cat(inputs).split(self._clip_batch_size)
            of_clip = torch.cat([models.clip(part) for part in parts])
        *vectors, classes = (torch.cat(parts) for parts in zip(*resnet, strict=True))
        return tuple(tensor.numpy() for tensor in (*vectors, of_clip, classes))

    def _clip_input(self, pixels: torch.Tensor, clip_input: np.ndarray | None) -> torch.Tensor:
        if clip_input is not None:
            return torch.tensor(clip_input)[None]
        table = crop_table([(pixels.shape[1], pixels.shape[2])])
        return resized_for_clip(pixels, torch.from_numpy(table))


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Raise torch's error of a full main memory, for which it has no type, as MemoryError."""
    try:
        yield
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error):
            raise MemoryError("main memory is too small") from error
        raise


def _overflown(rows: Rows) -> list[int]:
    """The places of the images with a value that is not finite."""
    finite = [np.isfinite(array).reshape(len(array), -1).all(1) for array in rows]
    return np.flatnonzero(~np.logical_and.reduce(finite)).tolist()
