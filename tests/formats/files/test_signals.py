import signal
import threading

import pytest

from lrzip.formats.files.signals import uninterrupted


def test_signals_are_handled_at_the_end() -> None:
    events: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: events.append("handled"))
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            events.append("done")
        assert events == ["done", "handled"]
        signal.raise_signal(signal.SIGTERM)
        assert events == ["done", "handled", "handled"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_interruption_follows_the_end() -> None:
    done = False
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done = True
    finally:
        signal.signal(signal.SIGINT, before)
    assert done


def test_ignored_signals_stay_ignored_and_other_threads_handle_none() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with uninterrupted():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        handlers = []

        def look() -> None:
            with uninterrupted():
                handlers.append(signal.getsignal(signal.SIGINT))

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert handlers == [signal.getsignal(signal.SIGINT)]
    finally:
        signal.signal(signal.SIGHUP, before)
