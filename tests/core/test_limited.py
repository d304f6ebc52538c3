"""Functions run in a process of their own, which is stopped at its limits and leaves nothing behind."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrzip.core.errors import LimitReached, NotCompared
from lrzip.core.limited import Limits, run_limited, stream_limited

ENOUGH = Limits(1 << 28, 30.0)


def product(a: int, b: int) -> tuple[int, int]:
    return a * b, os.getpid()


def allocate(nbytes: int) -> int:
    return len(bytearray(nbytes))


def wait(seconds: float) -> None:
    time.sleep(seconds)


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def leave(code: int) -> None:
    os._exit(code)


def refuse(message: str) -> None:
    raise NotCompared(message)


def fail() -> None:
    raise KeyError("x")


def count(last: int, folder: str) -> Iterator[int]:
    for number in range(last):
        Path(folder, str(number)).touch()
        yield number


def test_a_function_runs_in_another_process() -> None:
    value, process = run_limited(product, 6, 7, limits=ENOUGH)
    assert value == 42
    assert process != os.getpid()


def test_large_arguments_and_values_pass() -> None:
    data = bytes(1 << 24)
    assert run_limited(bytes, data, limits=ENOUGH) == data


def test_a_generator_is_passed_on_item_by_item(tmp_path: Path) -> None:
    found = stream_limited(count, 3, str(tmp_path), limits=ENOUGH)
    assert next(found) == 0
    assert list(found) == [1, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
def test_memory_is_limited_however_much_the_parent_has() -> None:
    assert run_limited(allocate, 1 << 27, limits=ENOUGH) == 1 << 27
    with pytest.raises(LimitReached, match=r"^it takes more than 0\.3 GB of memory$"):
        run_limited(allocate, 1 << 29, limits=ENOUGH)


def test_time_is_limited() -> None:
    start = time.monotonic()
    with pytest.raises(LimitReached, match=r"^it takes more than 0\.5 s$"):
        run_limited(wait, 20.0, limits=Limits(1 << 28, 0.5))
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    ("number", "message"), [(signal.SIGSEGV, r"it crashed \(SIGSEGV\)"), (signal.SIGKILL, "more than 0.3 GB of memory")]
)
def test_a_process_that_dies_is_an_error_of_one_line(number: int, message: str) -> None:
    with pytest.raises(LimitReached, match=message):
        run_limited(die, number, limits=ENOUGH)


def test_a_process_that_ends_itself_is_an_error() -> None:
    with pytest.raises(LimitReached, match="its process ended with exit code 3"):
        run_limited(leave, 3, limits=ENOUGH)


def test_errors_for_users_keep_their_class_and_others_their_message() -> None:
    with pytest.raises(NotCompared, match=r"^no\.$"):
        run_limited(refuse, "no.", limits=ENOUGH)
    with pytest.raises(RuntimeError, match=r"^KeyError: 'x'$"):
        run_limited(fail, limits=ENOUGH)


def test_no_process_is_left_when_the_caller_stops_early(tmp_path: Path) -> None:
    found = stream_limited(count, 10**9, str(tmp_path), limits=ENOUGH)
    next(found)
    found.close()  # type: ignore[attr-defined]
    before = len(list(tmp_path.iterdir()))
    time.sleep(0.1)
    assert len(list(tmp_path.iterdir())) == before
