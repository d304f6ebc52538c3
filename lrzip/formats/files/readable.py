"""Turn what goes wrong in reading a file into one line about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrzip.core.errors import LrzipError, UnsupportedCheckpoint, as_line


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in reading a file into one line about the file.

    The libraries that parse files raise anything at all on damaged ones: KeyError, EOFError, IndexError, RuntimeError.
    """
    try:
        yield
    except (LrzipError, MemoryError):
        raise
    except OSError as error:
        raise UnsupportedCheckpoint(f"`{path}` cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        text = str(error).rpartition("WeightsUnpickler error:")[2]  # torch says at length what to do before it
        detail = as_line(text) or type(error).__name__
        raise UnsupportedCheckpoint(f"`{path}` is damaged or not a checkpoint: {detail}.") from error
