"""What the C library does with freed memory."""

import ctypes
import sys
from threading import Lock

# Freeing page by page what is wanted again at once costs more than it saves.
_ENOUGH = 1 << 26

_lock = Lock()
_freed = 0


def give_back(nbytes: int) -> None:
    """Return freed memory to the system, once that is worth it.

    glibc keeps freed blocks of up to 32 MB below any small block that is still in use. Over a checkpoint of many
    layers that adds up to several times the largest of them; elsewhere this does nothing.

    Args:
        nbytes: About how much was freed just now.
    """
    global _freed
    with _lock:
        _freed += nbytes
        if _freed < _ENOUGH:
            return
        _freed = 0
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
