"""How this process uses main memory."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT_BYTES = 256 << 20  # of freed memory
LARGEST_KEPT_BYTES = 32 << 20  # of one piece: the largest M_MMAP_THRESHOLD that glibc takes


def keep_freed_memory() -> None:
    """Have glibc reuse the memory of large arrays instead of returning it to the system each time.

    Decoding then takes a fifth less time at 640 by 480 and a third less at 1920 by 1080: the system
    need not clear the same pages for every image. Elsewhere than on glibc this does nothing.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def ask_for_large_pages() -> None:
    """Have torch ask Linux for pages of 2 MB for large tensors, where the user has not chosen.

    The models then load twice as fast and compute 3% faster: fewer pages to clear and to look up.
    Torch reads this with its first tensor; later it does nothing.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
