"""Time two functions alternately."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

from lrzip.core.costs import Latency

# Number of rounds, and the seconds after which the smaller number suffices.
_ROUNDS = 50
_FEWEST = 7
_SECONDS = 0.5


def time_alternately(dense: Callable[[], object], factorized: Callable[[], object]) -> Latency:
    """Return the median run times of two functions in seconds.

    Calls alternate, so that other load on the machine affects both, and follow one call of each to warm up.

    Args:
        dense: Function that runs the dense network.
        factorized: Function that runs the factorized network.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        dense()
        factorized()
        start = perf_counter()
        for count in range(_ROUNDS):
            for function, times in zip((dense, factorized), seconds, strict=True):
                before = perf_counter()
                function()
                times.append(perf_counter() - before)
            if count + 1 >= _FEWEST and perf_counter() - start > _SECONDS:
                break
    return Latency(median(seconds[0]), median(seconds[1]))
