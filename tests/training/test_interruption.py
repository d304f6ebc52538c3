import signal
import threading

import pytest

from lrzip.training.interruption import interruption


def test_the_first_signal_is_recorded_and_the_second_interrupts() -> None:
    with interruption() as asked:
        requested = [asked.requested]
        signal.raise_signal(signal.SIGINT)
        assert [*requested, asked.requested] == [False, True]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_handler_is_restored() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError), interruption():
        assert signal.getsignal(signal.SIGINT) is not before
        raise RuntimeError
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_handle_no_signals() -> None:
    requested: list[bool] = []

    def work() -> None:
        with interruption() as asked:
            requested.append(asked.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert requested == [False]
