"""Which device, precision and cores; the batch size on a GPU, and how many pixels fit in memory."""

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from common.errors import DeviceError
from common.precision import Precision
from common.terminal import count

# What ResNet-50 keeps in memory at its peak, in res2: 52 values per pixel (input, shortcut, inner
# and output), and the workspace of the convolution.
VALUES_PER_PIXEL = 65
CPU_BYTES_PER_PIXEL = 200  # in float32, where sums overwrite the shortcut: measured 173
MEMORY_SHARE = 0.6  # of what is free, for one batch
# The stem gives 16 values per pixel: beyond this a tensor has 2**31 values, which cuDNN refuses.
LARGEST_PIXELS = 2**27 - 1
BATCH_PIXELS = 32 * 640 * 512  # larger batches are not faster; see bench/schedule.py
LARGEST_BATCH = 256
# Of images that are decoded or wait for a batch: 3 bytes per pixel, about 10 while decoding. A GPU
# gets more: 100 megapixels are only 8 photographs of 12 megapixels.
WAITING_PIXELS_CPU, WAITING_PIXELS_GPU = 100_000_000, 400_000_000
WAITING_SHARE = 0.1  # of the free main memory, for these
UNKNOWN_MEMORY_BYTES = 4 << 30
CGROUP = Path("/sys/fs/cgroup")
CGROUP_MEMORY = (  # limit and usage, in version 2 and 1
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # exists where the driver is loaded
# cuDNN 9 has other names than cuDNN 8; without memory for a workspace it finds no engine.
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "unable to find an engine")
TORCH_THREADS = torch.get_num_threads()  # as found: physical cores, or OMP_NUM_THREADS
DTYPES: dict[Precision, torch.dtype] = {name: getattr(torch, name.value) for name in Precision}


def choose_device(name: str) -> torch.device:
    """The device that `--device` names; auto is the first CUDA GPU, or else the CPU."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        return torch.device("cpu")
    if kind != "cuda" or (":" in name and not index.isdecimal()):
        raise DeviceError(f"--device {name!r} is not one of auto, cpu, cuda, cuda:1.")
    if problem := why_no_gpu():
        raise DeviceError(f"--device {name}: {problem} Or use --device cpu.")
    gpus = torch.cuda.device_count()
    if int(index or 0) >= gpus:
        raise DeviceError(f"--device {name}: there are {count(gpus, 'GPU')}, from cuda:0 on.")
    return torch.device("cuda", int(index or 0))


def why_no_gpu() -> str | None:
    """Why torch uses no GPU here, and what to do, in sentences; None if it can use one."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"torch {torch.__version__} is built without CUDA. Install another build"
            " (https://pytorch.org/get-started/locally)."
        )
    try:
        torch.cuda.init()
        reason = "it finds no GPU"
    except RuntimeError as error:  # such as: the driver is too old
        reason = str(error).partition("\n")[0].rstrip(".")
    return f"torch {torch.__version__} cannot use a GPU: {reason}. Does `nvidia-smi` list one?"


def has_unused_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU that torch cannot use."""
    return NVIDIA_DRIVER.exists() and not torch.cuda.is_available()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU ran out of memory: torch, cuDNN and cuBLAS have no common type for it."""
    return any(words in str(error) for words in OUT_OF_MEMORY)


@contextlib.contextmanager
def gpu_errors(device: torch.device) -> Iterator[None]:
    """Raise as DeviceError that a GPU is full, or that another program uses it exclusively."""
    try:
        yield
    except RuntimeError as error:
        is_full = is_out_of_memory(error) or "busy or unavailable" in str(error)
        if device.type != "cuda" or not is_full:
            raise
        said = str(error).partition("\n")[0].rstrip(".")
        raise DeviceError(
            f"{device} has no room for the models ({said}): end other programs that use it"
            " (`nvidia-smi` lists them), or choose another --device."
        ) from error


def choose_precision(name: str, device: torch.device) -> Precision | None:
    """The precision that `--precision` names, None for auto. Raises DeviceError."""
    if name == "auto":
        return None
    if name not in list(Precision):
        known = ", ".join(Precision)
        raise DeviceError(f"--precision {name!r} is not one of auto, {known}.")
    if name == Precision.FLOAT16 and device.type == "cpu":
        raise DeviceError("--precision float16 needs a GPU: use float32 or bfloat16 on a CPU.")
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)
    if name == Precision.BFLOAT16 and device.type == "cpu" and not supported():
        raise DeviceError("--precision bfloat16 needs a GPU or a CPU with AVX-512: use float32.")
    return Precision(name)


def bfloat16_is_faster() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32: it has AVX512-BF16 or AMX."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public ones
    return any(getattr(torch.cpu, name, bool)() for name in checks)


def available_memory() -> int:
    """Bytes of main memory that this process may still use: the least of system and cgroup."""
    limits = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        limits.append(_fields(meminfo, ":")["MemAvailable"] * 1024)
    for limit, usage in CGROUP_MEMORY:
        try:
            used = int((CGROUP / usage).read_text())
            # Cached files count as used there and give way when memory is needed.
            stat = (CGROUP / usage).with_name("memory.stat")
            used -= _fields(stat, " ").get("inactive_file", 0)
            limits.append(int((CGROUP / limit).read_text()) - used)
        except (OSError, ValueError):  # no such cgroup, or "max"
            continue
    return max(0, min(limits, default=UNKNOWN_MEMORY_BYTES))


def _fields(path: Path, separator: str) -> dict[str, int]:
    lines = (line.split(separator, 1) for line in path.read_text().splitlines())
    return {name: int(rest.split()[0]) for name, rest in lines if rest.split()[0].isdecimal()}


def cores() -> int:
    """How many cores this process may use: the least of torch's count, affinity and cgroup."""
    counts = [TORCH_THREADS]
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        counts.append(len(os.sched_getaffinity(0)))
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        counts.append(math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no cgroup, or "max"
        pass
    return max(1, min(counts))


class PixelBudget:
    """Limits the pixels of the images that threads compute at the same time to `capacity`.

    An image of more pixels waits until it is the only one.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._used = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def spend(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= self.capacity)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


def waiting_pixels(device: torch.device) -> int:
    """How many pixels of decoded images may wait in main memory for a device."""
    if device.type == "cpu":
        return WAITING_PIXELS_CPU
    fitting = int(WAITING_SHARE * available_memory()) // 3
    return max(WAITING_PIXELS_CPU, min(WAITING_PIXELS_GPU, fitting))


def pixels_that_fit(device: torch.device, dtype: torch.dtype) -> int:
    """How many pixels ResNet-50 can compute at once in the free memory of `device`."""
    if device.type == "cpu":
        free, per_pixel = available_memory(), CPU_BYTES_PER_PIXEL
    else:
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + kept  # torch keeps what was freed for reuse
        per_pixel = VALUES_PER_PIXEL * dtype.itemsize
    return min(LARGEST_PIXELS, int(MEMORY_SHARE * free) // per_pixel)
