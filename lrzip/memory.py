"""What the C library does with freed memory."""

import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 1 << 22


def return_large_blocks() -> None:
    """Let blocks of 4 MiB and more go back to the system as soon as they are freed.

    glibc begins so, at 128 KiB, but keeps ever larger blocks the more of them are freed, up to 32 MB: over a checkpoint
    of many layers that adds up to several times the largest of them. Other C libraries are left alone.
    """
    if sys.platform == "linux":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is not None:
            set_option(_M_MMAP_THRESHOLD, _LARGE)
