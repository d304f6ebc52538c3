"""What the C library does with freed memory."""

import ctypes
import sys


def give_back() -> None:
    """Return freed memory to the system.

    glibc keeps freed blocks of up to 32 MB below any small block that is still in use. Over a checkpoint of many
    layers that adds up to several times the largest of them; elsewhere this does nothing.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
