"""What the process asks the system for."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = """
import resource
import numpy as np
from common.memory import keep_freed_memory

if KEEP:
    keep_freed_memory()

def use():
    [np.ones(24 << 20, np.uint8) for _ in range(4)]

use(), use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_large_arrays_get_the_pages_of_those_before():
    def faults(keep):
        code = FAULTS.replace("KEEP", str(keep))
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True).stdout)

    assert faults(keep=True) < faults(keep=False) / 10


LARGE_PAGES = """
import resource
import embeddings, torch
from common import memory

if ASK:
    memory.ask_for_large_pages()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(32 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not MODE.exists() or "[madvise]" not in MODE.read_text(),
    reason="needs a Linux that gives large pages to those who ask",
)
def test_tensors_get_large_pages():
    def faults(ask):
        code = LARGE_PAGES.replace("ASK", str(ask))
        clean = {name: value for name, value in os.environ.items() if "THP" not in name}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=clean)
        return int(done.stdout)

    assert faults(ask=True) < faults(ask=False) / 10
