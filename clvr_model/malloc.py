"""glibc's malloc: which freed memory it keeps, and which it returns to the system."""

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def set_mmap_threshold(min_bytes: int = 1 << 20) -> None:
    """Let malloc map each block of at least `min_bytes` separately, and unmap it when it is freed.

    By default glibc keeps freed blocks of up to 32 MiB, which fragments the memory of a long-running actor
    until it grows to a multiple of its needs.
    """
    with suppress(OSError, AttributeError):  # other C libraries than glibc have no mallopt
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, min_bytes)


def reuse_freed_blocks(max_bytes: int = 16 << 20, kept_bytes: int = 64 << 20) -> None:
    """Let malloc keep freed blocks of up to `max_bytes`, at most `kept_bytes` at the end of the heap.

    For a process that decodes one image after the other: it would otherwise get the memory of each one from
    the system anew, page by page.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, max_bytes)
        libc.mallopt(_M_TRIM_THRESHOLD, kept_bytes)


def malloc_trim() -> None:
    """Return freed memory to the system; malloc otherwise keeps it for later requests."""
    with suppress(OSError, AttributeError):  # other C libraries than glibc have no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
