"""Memory that OpenVINO no longer needs, given back to the system. Does nothing but on Linux."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Collection
from pathlib import Path

_MADV_DONTNEED = 4  # <sys/mman.h>
_MAPS = Path("/proc/self/maps")

mapping = threading.Lock()
"""Held while graphs are compiled: a span that is unmapped and taken for other data must not be given back."""


def release(places: Collection[Path]) -> None:
    """Drops what is resident of the mapped files in `places` (files or folders), then trims.

    A graph's weights are mapped from its file and, when it first runs, copied in the layout of its kernels; both then
    stay resident. What is read again after all comes back from the system's cache of files.
    """
    if _MAPS.exists():
        libc = ctypes.CDLL(None)
        with mapping:
            for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
                span, permissions, _, _, _, *name = line.split(maxsplit=5)
                # A shared mapping has no pages of the process's own that could be lost.
                if permissions == "r--s" and any(Path(*name).is_relative_to(place) for place in places):
                    start, end = (int(address, 16) for address in span.split("-"))
                    libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)
    trim()


def trim() -> None:
    """Gives back what the allocator keeps of freed memory, where it is glibc's."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))
