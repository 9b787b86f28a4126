"""What the process asks the system for."""

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from memory import keep_freed_memory

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
