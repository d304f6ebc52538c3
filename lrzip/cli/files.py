"""Checkpoints from standard input and to standard output."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrzip.cli.streams import is_closed
from lrzip.core.errors import LrzipError, UsageError


@contextmanager
def checkpoint_path(checkpoint: str | None) -> Iterator[Path]:
    """Yield the path of CHECKPOINT; standard input is spooled to a temporary file, since readers need to seek."""
    if checkpoint not in (None, "-"):
        yield Path(str(checkpoint))
        return
    if sys.stdin is None or sys.stdin.isatty():
        state = "closed" if sys.stdin is None else "a terminal"
        raise UsageError(f"No CHECKPOINT, and standard input is {state}. Name a checkpoint file.")
    with tempfile.TemporaryDirectory(prefix="lrzip-") as folder:
        path = Path(folder) / "stdin"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        try:
            yield path
        except LrzipError as error:
            raise type(error)(str(error).replace(str(path), "standard input")) from error


def goes_to_stdout(output: Path | None, checkpoint: str | None) -> bool:
    """Return whether a result goes to standard output: if requested, or if the checkpoint is standard input."""
    return str(output) == "-" if output else checkpoint in (None, "-")


@contextmanager
def output_path(output: Path | None, *, to_stdout: bool) -> Iterator[Path | None]:
    """Yield the path to write; for standard output, a temporary file that is copied once it is complete."""
    if not to_stdout:
        yield output
        return
    if is_closed(sys.stdout):
        raise UsageError("The output goes to standard output, which is closed. Name a file with `-o`.")
    if sys.stdout.isatty():
        raise UsageError("The output is binary and standard output is a terminal. Name a file with `-o`.")
    with tempfile.TemporaryDirectory(prefix="lrzip-") as folder:
        path = Path(folder) / "stdout"
        yield path
        if path.is_dir():
            raise LrzipError("A folder of shards cannot go to standard output. Name a folder with `-o`.")
        if any(other != path for other in Path(folder).iterdir()):
            raise LrzipError("A model with external data cannot go to standard output. Name a file with `-o`.")
        if path.exists():
            with path.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
