"""Memory that a network frees is kept for its next batch, instead of going back to the system."""

from __future__ import annotations

import ctypes
import os
from functools import cache

# Parameters of glibc's mallopt, from malloc.h, and what else can set them.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
# Larger blocks, and what is free beyond that, go back to the system.
MOST_KEPT = 2**30


@cache
def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB of freed memory in this process.

    By default each block of 32 MiB, as layers make many of, is asked from the system and given
    back, and the system clears every page anew: with small networks on a CPU that takes longer
    than the arithmetic. Where the environment sets the allocator, or it is another one, nothing
    is done.
    """
    if any(variable in os.environ for variable in VARIABLES):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return
    if mallopt(MMAP_THRESHOLD, MOST_KEPT):  # older ones refuse, and trimming alone is worse
        mallopt(TRIM_THRESHOLD, MOST_KEPT)
