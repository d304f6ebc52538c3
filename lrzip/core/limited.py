"""Run what a file describes in a process of its own, with limits of memory and time.

A model file may ask for any amount of memory or time, or crash the library that runs it. In a process of its own it can
be stopped without harm to the caller.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from lrzip.core.errors import LimitReached, LrzipError, typed_line

_T = TypeVar("_T")
# The path is passed on since pytest, notebooks and scripts change it; so are limits of the C library's allocator, whose
# arenas of each thread would count as memory.
_START = "import sys, json; sys.path[:] = json.loads(sys.argv[2]); from lrzip.core import limited; limited.serve()"
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}
_GRACE = 2
"""Seconds after the limit at which a process ends by itself, if its parent is no longer there to end it."""


@dataclass(frozen=True)
class Limits:
    """Limits of a process.

    Attributes:
        nbytes: Memory that may be allocated beyond what its imports take.
        seconds: Wall time, with the start of the process.
    """

    nbytes: int
    seconds: float


def run_limited(function: Callable[..., _T], *arguments: Any, limits: Limits) -> _T:
    """Return the value of a function that is called in a process of its own.

    The function is looked up by its module and name, so it must be at the top level of a module; arguments, value and
    exceptions are pickled. Modules that its own module imports do not count as memory.

    Raises:
        LimitReached: The limits are exceeded, or the process died.
        LrzipError: The function raised one.
        RuntimeError: The function raised another exception, whose type and message are the message.
    """
    values: Iterator[_T] = stream_limited(_as_iterator, function, arguments, limits=limits)
    (value,) = values
    return value


def stream_limited(function: Callable[..., Iterator[_T]], *arguments: Any, limits: Limits) -> Iterator[_T]:
    """Yield what a generator function yields in a process of its own; see `run_limited`."""
    end = monotonic() + limits.seconds
    with _process() as (process, connection):
        try:
            connection.send((function, arguments, limits))
            while True:
                if not connection.poll(max(end - monotonic(), 0)):
                    raise LimitReached(f"it takes more than {limits.seconds:g} s")
                kind, value = connection.recv()
                if kind == "end":
                    return
                if kind == "error":
                    raise value
                yield value
        except (EOFError, ConnectionError) as error:
            raise LimitReached(_death(process.wait(), limits)) from error


def serve() -> None:
    """Run one function, in the process that `stream_limited` starts."""
    connection = Connection(int(sys.argv[1]))
    function, arguments, limits = connection.recv()  # imports the module of the function
    _set_limits(limits)
    try:
        for value in function(*arguments):
            connection.send(("value", value))
        connection.send(("end", None))
    except MemoryError:
        connection.send(("error", LimitReached(_too_much(limits))))
    except LrzipError as error:
        connection.send(("error", error))
    except Exception as error:  # classes of other libraries may not be picklable
        connection.send(("error", RuntimeError(typed_line(error, 2000))))


def _as_iterator(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Iterator[Any]:
    yield function(*arguments)


@contextmanager
def _process() -> Iterator[tuple[subprocess.Popen[bytes], Connection]]:
    """Start a process, and kill it at the end of the context."""
    ours, theirs = Pipe()
    arguments = [sys.executable, "-c", _START, str(theirs.fileno()), json.dumps(sys.path)]
    with ours:
        with theirs:
            process = subprocess.Popen(
                arguments,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **_ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        try:
            yield process, ours
        finally:
            process.kill()
            process.wait()


def _set_limits(limits: Limits) -> None:
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this process
    signal.alarm(ceil(limits.seconds) + _GRACE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = now + limits.nbytes
        resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))


def _too_much(limits: Limits) -> str:
    return f"it takes more than {limits.nbytes / 1e9:.1f} GB of memory"


def _death(code: int, limits: Limits) -> str:
    """Return why a process died without an answer: libraries abort where memory is short."""
    if -code in (signal.SIGKILL, signal.SIGABRT):
        return _too_much(limits)
    return f"it crashed ({signal.Signals(-code).name})" if code < 0 else f"its process ended with exit code {code}"
