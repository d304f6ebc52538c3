"""How long two things take, measured in turns."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

from lrzip.core.costs import Latency

# Rounds in which both take turns, and the seconds after which a few are enough.
_ROUNDS = 50
_FEW = 7
_PATIENCE = 0.5


def time_alternately(dense: Callable[[], object], factorized: Callable[[], object]) -> Latency:
    """Time two functions in turns, so that what else the machine does hits both, after one run of each to warm up."""
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
            if count + 1 >= _FEW and perf_counter() - start > _PATIENCE:
                break
    return Latency(median(seconds[0]), median(seconds[1]))
