"""Folders in which outputs are written before they appear, and what dead processes left of them.

A staging folder lies beside the output, `.lrzip-RANDOM`, and only its owner may enter it. It holds the output under its
own name: `new/NAME`, and on file systems that cannot exchange two paths, `old/NAME` while the new output moves into its
place. Its process holds a lock on it, which the system releases when the process ends, however it ends. A staging
folder without a lock was therefore left by a dead process.
"""

import atexit
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lrzip.formats.files.renames import move_new
from lrzip.formats.files.signals import uninterrupted

_NAME = re.compile(r"\.lrzip-[0-9a-f]{16}")
_NEW, _OLD = "new", "old"


class _Live:
    """Staging folders of this process, which are removed when it exits, whatever interrupts their removal before."""

    def __init__(self) -> None:
        self.folders: dict[Path, int] = {}
        atexit.register(self.remove)

    def remove(self) -> None:
        """Remove all folders that this process made; not those of the process that it was forked from."""
        for folder, process in list(self.folders.items()):
            if process == os.getpid():
                _dissolve(folder)


_LIVE = _Live()


@contextmanager
def staging_folder(beside: Path) -> Iterator[Path]:
    """Yield the folder `new` of a staging folder beside a path, and remove the staging folder at the end.

    Args:
        beside: Path of the output.
    """
    remove_leftovers(beside.parent)
    folder, lock = _locked_folder(beside.parent)
    try:
        (folder / _NEW).mkdir()
        yield folder / _NEW
    finally:
        with uninterrupted():
            _dissolve(folder)
            os.close(lock)


def set_aside(staged: Path, destination: Path) -> None:
    """Move an existing output into the staging folder of the one that replaces it.

    Args:
        staged: Path of the new output, `new/NAME` in its staging folder.
        destination: Path of the old output.
    """
    old = staged.parent.with_name(_OLD)
    old.mkdir(exist_ok=True)
    destination.rename(old / destination.name)


def bring_back(staged: Path, destination: Path) -> None:
    """Move an output that was set aside back to its place, if nothing else is there."""
    _restore(staged.parents[1], destination.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove the staging folders of dead processes, after moving outputs that they had set aside back to their places.

    Args:
        folder: Folder of an output.
    """
    with suppress(OSError):
        for path in [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]:
            with suppress(OSError):
                _remove_if_dead(path)


def _remove_if_dead(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if its process lives
        with uninterrupted():
            _dissolve(path)
    finally:
        os.close(descriptor)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """Return a new staging folder and the descriptor that holds its lock."""
    while True:
        folder = parent.absolute() / f".lrzip-{secrets.token_hex(8)}"
        with uninterrupted():
            folder.mkdir(mode=0o700)  # fails if there is anything at the path, also a link
            _LIVE.folders[folder] = os.getpid()
        with suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            if _lock(descriptor) and folder.exists():
                return folder, descriptor
            os.close(descriptor)
        _LIVE.folders.pop(folder, None)  # another process took it for a leftover before it was locked


def _lock(descriptor: int) -> bool:
    """Lock a folder; return False if another process has locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, on which nothing is taken for a leftover
        return True
    return True


def _dissolve(folder: Path) -> None:
    _restore(folder, folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    _LIVE.folders.pop(folder, None)


def _restore(folder: Path, parent: Path) -> None:
    """Move what was set aside back to its place, unless the new output is there already."""
    with suppress(OSError):
        for old in (folder / _OLD).iterdir():
            with suppress(FileExistsError):
                move_new(old, parent / old.name)
