"""Memory that is kept for the next photo instead of being given back to the system after each."""

from __future__ import annotations

import ctypes
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_LARGEST = 2**30


def keep_memory() -> bool:
    """Tells malloc to reuse large blocks; to be called before the workers start. False where there is no glibc.

    A photo takes and frees hundreds of megabytes in large pieces. By itself malloc returns each of them, and the system
    clears its pages before it hands them out again: a quarter of the time of a small model on a CPU. The process stays
    at the size that its largest photos needed. The workers share one store, so that what one has freed serves another.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {
        _M_MMAP_THRESHOLD: _LARGEST,
        _M_TRIM_THRESHOLD: 2 * _LARGEST - 1,
        _M_TOP_PAD: 2**26,
        _M_ARENA_MAX: 1,
    }
    return all(mallopt(name, value) == 1 for name, value in settings.items())
