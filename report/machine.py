"""The machine that this runs on, and the versions of what computes and transfers."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.program import program_digest

PACKAGES = ("torch", "numpy", "Pillow", "aiohttp", "google-cloud-storage")


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system, and the GPUs if torch is loaded already."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": platform.platform(),
        "gpus": _gpus(),
    }


def versions() -> dict[str, str]:
    """Of Python, of this program (a digest of its modules) and of PACKAGES."""
    found = {"python": platform.python_version(), "program": program_digest()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _gpus() -> list[str]:
    if not (torch := sys.modules.get("torch")):
        return []
    try:
        return [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    except (AttributeError, RuntimeError):  # it is being imported, or a GPU has failed
        return []


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
