"""End a process at each step of what it does to files, in turn."""

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from lrzip.formats.files import renames, staging

STEPS = ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync", "truncate", "open")
"""Functions of `os` at each call of which a process may end."""


def ended_at_each_step(action: Callable[[], object], number: int) -> Iterator[int]:
    """Yield the status of a process that receives a signal before one of its steps, for each of its steps in turn.

    Args:
        action: What the process does.
        number: The signal. Signals that can be handled end the process as the command line does.
    """
    step = 0
    while status := _forked(action, number, step):
        assert os.waitstatus_to_exitcode(status) in (-number, 128 + number)
        yield status
        step += 1
    assert step > 3


def _forked(action: Callable[[], object], number: int, step: int) -> int:
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1]
    code = 1
    try:
        if number != signal.SIGKILL:
            signal.signal(number, _exit)
        _count_down(number, step)
        action()
        code = 0
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        staging._LIVE.remove()  # as when an interpreter exits
        os._exit(code)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    raise SystemExit(128 + number)


def _count_down(number: int, steps: int) -> None:
    left = [steps]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            left[0] -= 1
            if left[0] == -1:
                os.kill(os.getpid(), number)
            return function(*args, **keywords)

        return call

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    renames._renameat2 = counted(renames._renameat2)
