"""Delay signals while files are moved or removed, so that no step is left half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Handle the signals that end a process when the context exits instead of at once.

    Outside of the main thread, which alone handles signals in Python, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def record(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)

    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    # Ignored signals stay ignored, as SIGHUP is under nohup; handlers of C (None) cannot be restored from Python.
    before = {n: handler for n in numbers if (handler := signal.getsignal(n)) not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, record)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(received):
            signal.raise_signal(number)
