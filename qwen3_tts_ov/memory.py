"""A process's memory: its peak, and giving back to the system what OpenVINO no longer needs."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Collection
from pathlib import Path

_MADV_DONTNEED = 4  # <sys/mman.h>
_MAPS = Path("/proc/self/maps")

mapping_lock = threading.Lock()
"""Held while graphs are compiled: a span that was unmapped and mapped again for other data must not be released."""


def peak_bytes() -> int:
    """The most bytes that this process has had resident; 0 on Windows, where Python cannot ask."""
    try:
        import resource
    except ImportError:
        return 0
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def available_bytes() -> int | None:
    """The bytes that a process can still take without swapping; None where Linux does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def release(places: Collection[Path]) -> None:
    """Drops the resident pages of mapped files in `places` (files or folders), then trims. Only on Linux.

    A graph's weights are mapped from its file and, when it first runs, copied into the layout of its kernels; both then
    stay resident. A page that is read again after all comes back from the system's file cache.
    """
    if _MAPS.exists():
        libc = ctypes.CDLL(None)
        with mapping_lock:
            for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
                span, permissions, _, _, _, *name = line.split(maxsplit=5)
                # A shared mapping has no pages of the process's own that could be lost.
                if permissions == "r--s" and any(Path(*name).is_relative_to(place) for place in places):
                    start, end = (int(address, 16) for address in span.split("-"))
                    libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)
    trim()


def trim() -> None:
    """Gives back freed memory that the allocator keeps, if it is glibc's."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))
