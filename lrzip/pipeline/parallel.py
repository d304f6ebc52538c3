"""Process several layers at a time, in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from lrzip.core.memory import return_large_blocks

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")
# Maximum number of items per worker that are being processed or wait for an earlier item.
_AHEAD = 8


def map_in_order(
    items: Sequence[Item],
    load: Callable[[Item], Loaded],
    work: Callable[[Item, Loaded], Result],
    *,
    nbytes: Callable[[Item], int],
    device: str,
) -> Iterator[Result]:
    """Yield `work(item, load(item))` for all items in their order, several processed at a time.

    On the CPU as many items are processed as torch has threads, each on one thread: LAPACK cannot use a second core
    on matrices of this size, and no result depends on the number of threads. A GPU gets one item at a time.

    Args:
        items: Items to process.
        load: Called on this thread, in order, when there is room.
        work: Called on other threads.
        nbytes: Memory of an item in bytes. Items that are being processed or wait for earlier ones take at most as much
            memory as the largest item times the number of threads.
        device: `cpu` or another device.
    """
    workers = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
    return_large_blocks()
    room = workers * max(map(nbytes, items), default=0)
    pending: deque[tuple[int, Future[Result]]] = deque()
    with _one_thread_each(), ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                while pending and (room < nbytes(item) or len(pending) == _AHEAD * workers):
                    room += pending[0][0]
                    yield pending.popleft()[1].result()
                room -= nbytes(item)
                pending.append((nbytes(item), pool.submit(work, item, load(item))))
            while pending:
                yield pending.popleft()[1].result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
