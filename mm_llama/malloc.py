"""Freed memory that stays with the process: by default glibc gives blocks above 128 KiB to 32 MiB back at once, and
every activation then costs page faults anew, half of the time of an image encoder on two cores.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed for what is asked for next; return whether it does.

    For programs (the commands, the demo), not for libraries: the whole process is concerned, and its resident memory
    stays at its peak. Where malloc is another's (macOS, musl, Windows), nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # glibc before 2.35 refuses large thresholds for mmap: then at least what the heap holds is kept.
    kept = [bool(mallopt(option, LARGE)) for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD)]
    return all(kept)
