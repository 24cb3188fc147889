"""Memory that OpenVINO no longer needs, given back to the system."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_MADV_DONTNEED = 4  # <sys/mman.h>


def release() -> None:
    """Drops the pages of files that are mapped to be read only, and what the allocator keeps of freed memory.

    A graph's weights are mapped from its file and, when it first runs, copied in the layout of its kernels; both then
    stay resident. What is read again after all comes back from the system's cache of files. Only shared mappings are
    touched: their pages are never the process's own, so nothing can be lost. Does nothing but on Linux.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        span, permissions, _, _, inode, *_ = line.split(maxsplit=5)
        if permissions == "r--s" and inode != "0":
            start, end = (int(address, 16) for address in span.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)
    if hasattr(libc, "malloc_trim"):  # glibc's
        libc.malloc_trim(ctypes.c_size_t(0))
