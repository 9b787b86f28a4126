"""Which device computes, in which precision, and how much fits into its memory."""

from pathlib import Path

import click
import torch

# Live activations of ResNet-50 at their peak, in res2: input, shortcut, inner and output are 52
# values a pixel, and workspace; measured (docs/performance.md).
VALUES_PER_PIXEL = 65
MEMORY_SHARE = 0.6  # of what is free, for one batch
# 16 values a pixel leave the stem: beyond this a tensor has 2**31 values, which cuDNN refuses.
LARGEST_PIXELS = 2**27 - 1
BATCH_PIXELS = 20_000_000  # a GPU is busy with 64 images of 640 by 480; more only adds latency
LARGEST_BATCH = 256
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class DeviceError(click.ClickException):
    """Why the device or precision asked for cannot be had, in one sentence."""


def choose_device(name: str) -> torch.device:
    """The device of `--device`: auto is the first CUDA GPU where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        return torch.device("cpu")
    if kind != "cuda" or (":" in name and not index.isdecimal()):
        raise DeviceError(f"--device {name!r} is none of auto, cpu, cuda, cuda:1.")
    if torch.version.cuda is None and torch.version.hip is None:
        raise DeviceError(
            f"--device {name} needs a CUDA build of torch, and torch {torch.__version__} is none:"
            " see https://pytorch.org/get-started/locally."
        )
    if not torch.cuda.is_available():
        raise DeviceError(f"--device {name}: torch finds no CUDA GPU; does `nvidia-smi` list one?")
    if int(index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"--device {name}: this machine has {torch.cuda.device_count()} GPU(s).")
    return torch.device("cuda", int(index or 0))


def fastest_precision(device: torch.device) -> str:
    """What auto tries: float16 on a GPU, whose mantissa has 3 bits more than bfloat16's.

    On a CPU float32: there the numbers of an index are those of the original packages, to 1e-5.
    """
    return "float16" if device.type == "cuda" else "float32"


def check_precision(name: str, device: torch.device) -> None:
    """Raise DeviceError unless `name` is a precision that the device can compute in."""
    if name != "auto" and name not in PRECISIONS:
        raise DeviceError(f"--precision {name!r} is none of auto, {', '.join(PRECISIONS)}.")
    if name == "float16" and device.type == "cpu":
        raise DeviceError("--precision float16 needs a GPU: on a CPU take float32 or bfloat16.")


def available_memory() -> int:
    """Bytes of main memory that a process may still take: the system's, or its cgroup's if less."""
    limits = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limits.append(
                int(Path("/sys/fs/cgroup", limit).read_text())
                - int(Path("/sys/fs/cgroup", usage).read_text())
            )
        except (OSError, ValueError):  # no cgroup, or "max"
            continue
    return max(0, min(limits, default=4 << 30))


def free_memory(device: torch.device) -> int:
    """Bytes that tensors on `device` may still take, what torch keeps for reuse included."""
    if device.type != "cuda":
        return available_memory()
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + kept


def pixels_that_fit(device: torch.device, dtype: torch.dtype) -> int:
    """How many pixels ResNet-50 can take at once in the free memory of `device`."""
    per_pixel = VALUES_PER_PIXEL * dtype.itemsize
    return min(LARGEST_PIXELS, int(MEMORY_SHARE * free_memory(device)) // per_pixel)
