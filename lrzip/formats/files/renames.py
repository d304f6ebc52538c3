"""Move files and folders in one step: without replacing anything, or by exchanging two of them."""

import ctypes
import errno
import os
import sys
from pathlib import Path

# Flags of renameat2 of Linux; other systems and some file systems lack it.
_NO_REPLACE, _EXCHANGE = 1, 2
_AT_FDCWD = -100
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}


def move_new(source: Path, destination: Path) -> None:
    """Move a file or folder to a path at which there is nothing.

    Raises:
        FileExistsError: There is something at the destination; it stays as it is.
    """
    try:
        _renameat2(source, destination, _NO_REPLACE)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _move_new_portably(source, destination)


def exchange(first: Path, second: Path) -> bool:
    """Exchange two files or folders, so that both paths exist at every moment; return False if that is unsupported."""
    try:
        _renameat2(first, second, _EXCHANGE)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True


def _move_new_portably(source: Path, destination: Path) -> None:
    if source.is_dir() or not _link(source, destination):
        if os.path.lexists(destination):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(destination))
        source.rename(destination)


def _link(source: Path, destination: Path) -> bool:
    """Give a file a second name, which fails if that exists; return False on file systems without links."""
    try:
        os.link(source, destination)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    source.unlink()
    return True


def _renameat2(source: Path, destination: Path, flags: int) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(destination), flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(destination))
