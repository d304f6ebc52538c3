"""What the C library does with freed memory."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGE = 1 << 22
_ALL = (1 << 31) - 1


def return_large_blocks() -> None:
    """Let blocks of 4 MiB and more go back to the system as soon as they are freed.

    glibc begins so, at 128 KiB, but keeps ever larger blocks the more of them are freed, up to 32 MB: over a checkpoint
    of many layers that adds up to several times the largest of them. Other C libraries are left alone.
    """
    _set_thresholds(own_mapping=_LARGE, trim=2 * _LARGE)


def keep_freed_blocks() -> None:
    """Let freed memory be used again, up to 2 GiB, in place of going back to the system.

    The activations of a network are the same blocks batch after batch. With glibc's own thresholds they went back and
    came anew, page by page, in every step: without that, those of a ResNet-20 took half of the time in float32, and
    two thirds in bfloat16.
    """
    _set_thresholds(own_mapping=_ALL, trim=_ALL)


def _set_thresholds(*, own_mapping: int, trim: int) -> None:
    """Set from how many bytes on a block is mapped by itself, and a free end of the heap given back."""
    if sys.platform == "linux":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is not None:
            set_option(_M_MMAP_THRESHOLD, own_mapping)
            set_option(_M_TRIM_THRESHOLD, trim)
