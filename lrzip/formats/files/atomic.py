"""Write files and folders atomically: an output appears only when it is complete, and replaces nothing unexpected."""

import filecmp
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from lrzip.core.errors import LrzipError, OutputExists
from lrzip.formats.files.claims import Identity, claim, newcomer, refuse_newcomer, renew, replaceable, run_check
from lrzip.formats.files.missing import refuse_missing
from lrzip.formats.files.renames import exchange, move_new
from lrzip.formats.files.signals import uninterrupted
from lrzip.formats.files.staging import bring_back, remove_leftovers, set_aside, staging_folder

_STREAMS = ("/dev/stdout", "/dev/stderr")
_DESCRIPTORS = ("/dev/fd", "/proc/self/fd")


def check_output(destination: Path, source: Path | None, *, force: bool) -> None:
    """Refuse an output that cannot be written or would overwrite something, before any work is done.

    What is at the path now, and nothing else, may be replaced later. Folders that dead processes left beside it are
    removed.

    Args:
        destination: Path of the output. A link is followed: the output replaces the file that it refers to.
        source: Path of the input, which must not be overwritten.
        force: Whether an existing output may be overwritten.

    Raises:
        OutputExists: The output exists and `force` is False, or it is the input.
        LrzipError: Its folder is missing or not writable, or it is a device that is not a stream.
    """
    if is_stream(destination):
        return
    parent = destination.absolute().parent
    if not parent.is_dir():
        if source is not None:
            refuse_missing(source)
        raise LrzipError(f"The output folder `{parent}` does not exist. Create it first.")
    target = _target(destination)
    if not os.access(target.parent, os.W_OK):
        raise LrzipError(f"The output folder `{target.parent}` is not writable. Choose another with `output=PATH`.")
    remove_leftovers(target.parent)
    if destination.exists() or destination.is_symlink():
        _check_existing(destination, source, force=force)
    claim(target)


def _check_existing(destination: Path, source: Path | None, *, force: bool) -> None:
    if source is not None and source.exists() and destination.exists() and destination.samefile(source):
        raise OutputExists(f"The output `{destination}` is the input. Choose another with `output=PATH`.")
    if destination.exists() and not destination.is_file() and not destination.is_dir():
        raise LrzipError(
            f"The output `{destination}` is neither a file nor a folder. Choose another with `output=PATH`."
        )
    if source is not None and destination.is_dir() and source.resolve().is_relative_to(destination.resolve()):
        raise OutputExists(f"The output folder `{destination}` contains the input. Choose another with `output=PATH`.")
    if not force:
        raise OutputExists(f"`{destination}` exists. Pass `force=True` to overwrite it.")


def is_stream(path: Path) -> bool:
    """Return whether bytes that are written to a path go to a pipe, a terminal or a device, not into a file."""
    named = str(path) in _STREAMS or str(path.parent) in _DESCRIPTORS
    return named or path.is_fifo() or path.is_char_device()


@contextmanager
def atomic_file(destination: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder; its file gets the destination's name on success and is removed on failure.

    The file of a stream is copied to it once it is complete.
    """
    if is_stream(destination):
        with TemporaryDirectory(prefix="lrzip-") as folder:
            yield Path(folder) / destination.name
            run_check(destination)
            with (Path(folder) / destination.name).open("rb") as file, destination.open("ab") as stream:
                shutil.copyfileobj(file, stream)
        return
    target = _target(destination)
    with atomic_files(destination) as folder:
        (folder / target.name).touch()  # so that an output that cannot be written fails before the work
        yield folder / target.name


@contextmanager
def atomic_folder(destination: Path) -> Iterator[Path]:
    """Yield a temporary folder, which gets the destination's name on success and is removed on failure."""
    target = _target(destination)
    with atomic_files(destination) as folder:
        (folder / target.name).mkdir()
        yield folder / target.name


@contextmanager
def atomic_files(
    destination: Path, obsolete: Callable[[Collection[Path]], Iterable[Path]] | None = None
) -> Iterator[Path]:
    """Yield a temporary folder for an output with the destination's name and further files that belong to it.

    On success all are moved beside the destination. The one with the destination's name is moved last and in one step,
    so that there is an old or a new output at every moment, with the files that belong to it. On failure all are
    removed.

    Args:
        destination: Path of the output.
        obsolete: Function from the further files of the output to those of the old one, which are then removed.
    """
    target = _target(destination)
    before = replaceable(target)
    with staging_folder(target) as folder:
        yield folder
        for path in folder.rglob("*"):
            if not path.is_symlink():
                _sync(path)
        others = {path: target.with_name(path.name) for path in folder.iterdir() if path.name != target.name}
        run_check(destination)
        with uninterrupted(), ExitStack() as undo:
            for path, beside in others.items():
                _move_beside(path, beside, undo)
            _move(folder / target.name, target, before)
            undo.pop_all()
            renew(target)
            _sync(target.parent)
            for path in obsolete(others.values()) if obsolete else ():
                path.unlink(missing_ok=True)


def _target(destination: Path) -> Path:
    """Return the path that is written: that of the file that a link refers to, otherwise the destination itself."""
    return destination.resolve() if destination.is_symlink() else destination.absolute()


def _move_beside(path: Path, beside: Path, undo: ExitStack) -> None:
    """Move a file that belongs to an output beside it, unless the same file is there already."""
    try:
        move_new(path, beside)
    except FileExistsError:
        if not beside.is_file() or not filecmp.cmp(path, beside, shallow=False):
            raise OutputExists(f"`{beside}`, a file of the output, exists. Remove it first.") from None
    else:
        undo.callback(beside.unlink)


def _move(staged: Path, target: Path, before: Identity | None) -> None:
    """Move an output to its place, in one step where the file system can do that."""
    refuse_newcomer(target, before)
    if not target.exists():
        try:
            move_new(staged, target)
        except FileExistsError:
            raise newcomer(target) from None
    elif staged.is_file() and target.is_file():
        staged.replace(target)
    elif not exchange(staged, target):
        set_aside(staged, target)
        try:
            move_new(staged, target)
        except OSError:
            bring_back(staged, target)
            raise


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk: a rename may become durable before the data it refers to."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
