"""Turn the exceptions of parsers into errors of one line that name the file."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrzip.core.errors import LrzipError, UnsupportedCheckpoint, as_line

_INTERNAL = re.compile(r"\[enforce fail at [^\]]*\][ .]*")  # a line of the source of torch


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise every exception in the context as `UnsupportedCheckpoint` with one line about the file.

    Parsers raise many classes of exceptions for damaged files, among them KeyError, EOFError and RuntimeError.
    MemoryError passes unchanged, and so does a LrzipError that names the file; others are preceded by its name.

    Args:
        path: Path of the file that is read.

    Raises:
        UnsupportedCheckpoint: The file cannot be read, or is damaged.
    """
    try:
        yield
    except MemoryError:
        raise
    except LrzipError as error:
        if path.name in str(error):
            raise
        raise type(error)(f"`{path}`: {error}") from error
    except OSError as error:
        raise UnsupportedCheckpoint(f"`{path}` cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        text = str(error).rpartition("WeightsUnpickler error:")[2]  # torch puts a long advice before it
        text = _INTERNAL.sub("", text)
        detail = as_line(text) or type(error).__name__
        raise UnsupportedCheckpoint(f"`{path}` is damaged or not a checkpoint: {detail}.") from error
