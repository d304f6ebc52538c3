"""Compare the outputs or the run times of two ONNX models on the same inputs."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from lrzip.core.costs import Latency
from lrzip.core.errors import LimitReached, LrzipError, NotCompared
from lrzip.core.limited import run_limited
from lrzip.core.report import Comparison, Difference
from lrzip.formats.onnx.feeds import Given, random_feed
from lrzip.formats.onnx.run import is_installed, limits_of, new_session, require_runtime
from lrzip.formats.onnx.samples import nbytes_of
from lrzip.formats.onnx.trial import compare_models
from lrzip.networks.timing import time_alternately

_SECONDS = 600.0
"""Limit of a measurement of run times, which takes at least eight runs of each model."""


def compare(dense: Path, small: Path, given: Given, *, nbytes: int) -> Comparison:
    """Return the difference of each output of two models on the same inputs.

    Both run in a process of its own, with limits of memory and time.

    Args:
        dense: Path of the original model.
        small: Path of the compressed model.
        given: What is known about the inputs.
        nbytes: Size of the original model in bytes, with its external data.

    Raises:
        NotCompared: onnxruntime is not installed, the original model does not run on such inputs or takes too much
            memory or time, or its outputs do not depend on the inputs.
        LrzipError: The original model runs and the compressed one does not.
    """
    require_runtime()
    if 2 * nbytes > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise NotCompared("running the model may take more memory than is available.")
    limits = limits_of(nbytes + nbytes_of(given.samples))
    try:
        outcome = run_limited(compare_models, dense, small, given, torch.get_num_threads(), limits=limits)
    except LimitReached as error:
        raise NotCompared(f"the run of the model was stopped, since {error}.") from error
    reason = " ".join(outcome.reasons) or None
    if not outcome.differences:
        raise NotCompared(reason or "the model has no numerical outputs.")
    found = [Difference(name, *values) for name, values in outcome.differences.items()]
    return Comparison(found, outcome.text, reason)


def time(dense: Path, small: Path, sizes: Sequence[Sequence[int]], *, nbytes: int) -> Latency | None:
    """Return the run times of two models on the same random inputs, or None if one does not run.

    Both run in a process of its own, with limits of memory and time.

    Args:
        dense: Path of the original model.
        small: Path of the compressed model.
        sizes: Shapes of the inputs. If empty, the declared ones are used, with symbolic dimensions of size 1.
        nbytes: Size of the original model in bytes, with its external data.
    """
    if not is_installed():
        return None
    limits = replace(limits_of(nbytes), seconds=_SECONDS)
    try:
        return run_limited(_time, dense, small, sizes, torch.get_num_threads(), limits=limits)
    except (LrzipError, RuntimeError):
        return None


def _time(dense: Path, small: Path, sizes: Sequence[Sequence[int]], threads: int) -> Latency:
    before, after = (new_session(path, threads, has_arena=True) for path in (dense, small))
    inputs = before.get_inputs()
    shapes = sizes or [[size if isinstance(size, int) else 1 for size in item.shape] for item in inputs]
    feed = random_feed(inputs, shapes)
    return time_alternately(partial(before.run, None, feed), partial(after.run, None, feed))
