"""Searches for small networks, on a task with a known answer."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrzip.search.compress_within import compress_within
from lrzip.search.report import SearchReport
from lrzip.search.states import States
from lrzip.search.trials import Trials
from lrzip.search.variants import Variants
from lrzip.training.bench import make_bench
from lrzip.training.cache import Cache
from tests.support.tasks import Deep, classes, learning_of


def compress(folder: Path, name: str = "small.pt", **others: Any) -> SearchReport:
    """Compress `dense.pt` in a folder."""
    options: dict[str, Any] = {"max_drop": 5, "model": Deep(), "learning": learning_of(*classes()), "force": True}
    return compress_within(folder / "dense.pt", folder / name, **options | others)


def trials_of(folder: Path, bound: float = 0.05, *, log: Path | None = None, **learning: Any) -> Trials:
    """Return the trials of `dense.pt` in a folder, in memory or with a log."""
    bench = make_bench(folder / "dense.pt", Deep(), learning_of(*classes(), **learning), distil=True)
    states = States(log.with_name("states") if log else None)
    return Trials(bench, Variants(bench.model), Cache(log), states, bound)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of samples that a network classifies correctly."""
    return float((model.eval()(x).argmax(1) == y).float().mean())
