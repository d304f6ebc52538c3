"""Checkpoints from standard input and to standard output."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lrzip.cli.streams import is_closed
from lrzip.core.errors import LrzipError, UsageError
from lrzip.formats.files.atomic import is_stream

_STDOUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


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
    return str(output) in ("-", *_STDOUT) if output else checkpoint in (None, "-")


@contextmanager
def output_path(output: Path | None, *, to_stdout: bool) -> Iterator[Path | None]:
    """Yield the path to write; for standard output, pipes and devices, a temporary file that is copied at the end."""
    if not to_stdout and not (output and is_stream(output)):
        yield output
        return
    if to_stdout and is_closed(sys.stdout):
        raise UsageError("The output goes to standard output, which is closed. Name a file with `-o`.")
    if to_stdout and sys.stdout.isatty():
        raise UsageError("The output is binary and standard output is a terminal. Name a file with `-o`.")
    name = f"`{output}`" if output and not to_stdout else "standard output"
    with tempfile.TemporaryDirectory(prefix="lrzip-") as folder:
        path = Path(folder) / (output.name if output and not to_stdout else "stdout")
        yield path
        if path.is_dir():
            raise LrzipError(f"A folder of shards cannot go to {name}. Name a folder with `-o`.")
        if any(other != path for other in Path(folder).iterdir()):
            raise LrzipError(f"A model with external data cannot go to {name}. Name a file with `-o`.")
        if path.exists():
            with path.open("rb") as file, ExitStack() as stack:
                stream = stack.enter_context(output.open("ab")) if output and not to_stdout else sys.stdout.buffer
                shutil.copyfileobj(file, stream)
                stream.flush()
