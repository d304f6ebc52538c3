"""Record the state of output paths when a run begins, so that nothing that appears during the run is replaced."""

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lrzip.core.errors import OutputExists


class Identity(NamedTuple):
    """Identity of a file, which changes when the file is replaced or written.

    Attributes:
        device: Device of the file.
        inode: Number of the file on its device.
        size: Size in bytes; 0 for folders.
        mtime_ns: Time of the last change of its content; 0 for folders.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "Identity | None":
        """Return the identity of the file or folder at a path, or None if there is none."""
        try:
            found = path.stat()
        except OSError:
            return None
        is_folder = stat.S_ISDIR(found.st_mode)
        return cls(found.st_dev, found.st_ino, *((0, 0) if is_folder else (found.st_size, found.st_mtime_ns)))


_CLAIMED: dict[Path, Identity | None] = {}
_CHECKS: dict[Path, Callable[[], None]] = {}


@contextmanager
def checked_before(path: Path, check: Callable[[], None]) -> Iterator[None]:
    """Check that an output is still valid immediately before it appears at its path.

    Args:
        path: Path of the output.
        check: Function that raises an error if the output must not appear.
    """
    _CHECKS[path.absolute()] = check
    try:
        yield
    finally:
        _CHECKS.pop(path.absolute(), None)


def run_check(path: Path) -> None:
    """Run the check of an output that is about to appear, if it has one."""
    check = _CHECKS.get(path.absolute())
    if check:
        check()


def claim(path: Path) -> None:
    """Record what is at the path of an output, which the output may replace."""
    _CLAIMED[path] = Identity.of(path)


def renew(path: Path) -> None:
    """Record that an output of this process was written, which later ones may replace, if its path was claimed."""
    if path in _CLAIMED:
        claim(path)


def replaceable(path: Path) -> Identity | None:
    """Return what an output may replace: what was at its path when it was claimed, or else what is there now."""
    return _CLAIMED[path] if path in _CLAIMED else Identity.of(path)


def refuse_newcomer(path: Path, before: Identity | None) -> None:
    """Refuse to replace an output that another process wrote in the meantime.

    Args:
        path: Path of the output.
        before: What the output may replace.

    Raises:
        OutputExists: What is at the path now is something else.
    """
    now = Identity.of(path)
    if now is not None and (before is None or now[:2] != before[:2]):
        raise newcomer(path)


def newcomer(path: Path) -> OutputExists:
    """Return the error for an output that another process wrote in the meantime."""
    return OutputExists(f"`{path}` was written by another process in the meantime and is kept. Choose another output.")
