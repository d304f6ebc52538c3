"""Write files and folders atomically: an output appears only when it is complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrzip.core.errors import LrzipError, OutputExists


def check_output(destination: Path, source: Path | None, *, force: bool) -> None:
    """Refuse an output that cannot be written or would overwrite something, before any work is done.

    Args:
        destination: Path of the output.
        source: Path of the input, which must not be overwritten.
        force: Whether an existing output may be overwritten.

    Raises:
        OutputExists: The output exists and `force` is False, or it is the input.
        LrzipError: Its folder is missing or not writable, or it is neither a file nor a folder.
    """
    parent = destination.absolute().parent
    if not parent.is_dir():
        raise LrzipError(f"The output folder `{parent}` does not exist. Create it first.")
    if not os.access(parent, os.W_OK):
        raise LrzipError(f"The output folder `{parent}` is not writable. Choose another with `output=PATH`.")
    if not destination.exists() and not destination.is_symlink():
        return
    if source is not None and source.exists() and destination.exists() and destination.samefile(source):
        raise OutputExists(f"The output `{destination}` is the input. Choose another with `output=PATH`.")
    if not destination.is_file() and not destination.is_dir():
        raise LrzipError(
            f"The output `{destination}` is neither a file nor a folder. Choose another with `output=PATH`."
        )
    if source is not None and destination.is_dir() and source.resolve().is_relative_to(destination.resolve()):
        raise OutputExists(f"The output folder `{destination}` contains the input. Choose another with `output=PATH`.")
    if not force:
        raise OutputExists(f"`{destination}` exists. Pass `force=True` to overwrite it.")


@contextmanager
def atomic_file(destination: Path) -> Iterator[Path]:
    """Yield a temporary path beside the destination, which is renamed on success and removed on failure."""
    temporary = _beside(destination)
    try:
        temporary.touch()  # so that an output that cannot be written fails before the work
        yield temporary
        _sync(temporary)
        temporary.replace(destination)
        _sync(destination.absolute().parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(destination: Path) -> Iterator[Path]:
    """Yield a temporary folder beside the destination, which is renamed on success and removed on failure."""
    temporary = _beside(destination)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if not path.is_symlink():
                _sync(path)
        if destination.exists():
            old = _beside(destination).with_suffix(".old")
            destination.rename(old)
            temporary.rename(destination)
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        else:
            temporary.rename(destination)
        _sync(destination.absolute().parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_files(destination: Path) -> Iterator[Path]:
    """Yield a temporary folder for a file with the destination's name and further files that belong to it.

    On success all files are moved beside the destination. The file with the destination's name is moved last, so that
    it never exists without the others. On failure all are removed.
    """
    temporary = _beside(destination)
    temporary.mkdir()
    try:
        yield temporary
        others = [path for path in temporary.iterdir() if path.name != destination.name]
        files = [*others, temporary / destination.name]
        for path in files:
            _sync(path)
        if others:
            destination.unlink(missing_ok=True)  # an old file does not fit the new files beside it
        for path in files:
            path.replace(destination.with_name(path.name))
        _sync(destination.absolute().parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.{os.getpid()}.part")


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk: a rename may become durable before the data it refers to."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
