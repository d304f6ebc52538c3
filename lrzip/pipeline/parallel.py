"""Work on many layers at once."""

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
# Small items that may wait, done, for a large one before them.
_AHEAD = 8


def map_in_order(
    items: Sequence[Item],
    load: Callable[[Item], Loaded],
    work: Callable[[Item, Loaded], Result],
    *,
    nbytes: Callable[[Item], int],
    device: str,
) -> Iterator[Result]:
    """Yield `work(item, load(item))` for all items, in their order, with several of them in work at a time.

    On the CPU as many items are in work as torch has threads, each on one thread of its own: LAPACK keeps no second
    core busy on matrices of this size, and no result depends on the number of threads. A GPU gets one item at a time.

    Args:
        items: What to do.
        load: Called on this thread, one item after the other, when there is room.
        work: Called on other threads.
        nbytes: Of memory that an item takes. What is in work, or done and waiting for those before it, takes at most
            as much as the largest item would on each thread.
        device: `cpu` or another.
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
