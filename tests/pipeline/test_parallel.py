import threading
from time import sleep

import pytest
import torch

from lrzip.pipeline.parallel import map_in_order


@pytest.fixture(autouse=True)
def _three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


def test_results_come_in_the_order_of_the_items() -> None:
    def work(item: int, loaded: int) -> int:
        sleep(0.001 * (item % 3))
        return item * loaded

    results = map_in_order(range(20), lambda item: item + 1, work, nbytes=lambda _: 1, device="cpu")
    assert list(results) == [item * (item + 1) for item in range(20)]


def test_memory_in_work_stays_within_the_largest_item_on_each_thread() -> None:
    sizes = [100, 1, 1, 60, 60, 60, 100, 100, 100, 100, 3]
    lock, held, most = threading.Lock(), 0, 0

    def load(size: int) -> int:
        nonlocal held, most
        with lock:
            held += size
            most = max(most, held)
        return size

    for size in map_in_order(sizes, load, lambda _, loaded: loaded, nbytes=lambda size: size, device="cpu"):
        with lock:
            held -= size
    assert 100 < most <= 300


def test_items_are_in_work_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=10)
    results = map_in_order([1] * 6, lambda item: item, lambda *_: together.wait(), nbytes=lambda _: 1, device="cpu")
    assert len(list(results)) == 6


def test_an_error_stops_the_rest_and_reaches_the_caller() -> None:
    started: list[int] = []

    def work(item: int, loaded: int) -> int:
        started.append(item)
        if item == 2:
            raise ValueError("two")
        return loaded

    with pytest.raises(ValueError, match="two"):
        list(map_in_order(range(1000), lambda item: item, work, nbytes=lambda _: 1, device="cpu"))
    assert len(started) < 100


def test_nothing_to_do_is_done() -> None:
    assert list(map_in_order([], lambda item: item, lambda item, _: item, nbytes=lambda _: 1, device="cpu")) == []
