"""Compare the outputs or the run times of two ONNX models on the same random inputs."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lrzip.core.costs import Latency
from lrzip.core.errors import LrzipError, NotCompared
from lrzip.core.report import Difference
from lrzip.formats.onnx.feeds import Arrays, feed_of_shapes, random_feeds
from lrzip.formats.onnx.run import message_of, new_session, run_numbers, runtime
from lrzip.networks.timing import time_alternately


def compare(dense: Path, small: Path, *, nbytes: int) -> Sequence[Difference]:
    """Return the difference of each output of two models on the same random inputs.

    Args:
        dense: Path of the original model.
        small: Path of the compressed model.
        nbytes: Size of the original model in bytes, with its external data.

    Raises:
        NotCompared: onnxruntime is not installed, or the original model does not run on random inputs.
        LrzipError: The original model runs and the compressed one does not.
    """
    onnxruntime = runtime()
    if 2 * nbytes > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise NotCompared("running the model may take more memory than is available.")
    feed, before, reason = _dense_run(onnxruntime, dense)
    try:
        session = new_session(onnxruntime, small)
        after = {} if reason else run_numbers(onnxruntime, session, feed)
    except NotCompared:
        raise
    except Exception as error:
        raise LrzipError(
            f"`{small.name}` would not run in onnxruntime, unlike the original model: {message_of(error)}."
        ) from error
    if reason:
        raise NotCompared(reason)
    return [_difference(name, value, after[name]) for name, value in before.items()]


def time(dense: Path, small: Path, sizes: Sequence[Sequence[int]]) -> Latency | None:
    """Return the run times of two models on the same random inputs, or None if one does not run.

    Args:
        dense: Path of the original model.
        small: Path of the compressed model.
        sizes: Shapes of the inputs. If empty, the declared ones are used, with symbolic dimensions of size 1.
    """
    try:
        onnxruntime = runtime()
        before, after = (new_session(onnxruntime, path) for path in (dense, small))
        inputs = before.get_inputs()
        shapes = sizes or [[size if isinstance(size, int) else 1 for size in item.shape] for item in inputs]
        feed = feed_of_shapes(inputs, shapes)
        return time_alternately(partial(before.run, None, feed), partial(after.run, None, feed))
    except Exception:  # onnxruntime raises exceptions of many classes for unsuitable inputs
        return None


def _dense_run(onnxruntime: Any, path: Path) -> tuple[Arrays, Arrays, str | None]:
    """Return random inputs for which a model has finite outputs, these outputs, and the reason if there are none."""
    try:
        session = new_session(onnxruntime, path)
    except Exception as error:
        raise NotCompared(f"the model does not run in onnxruntime: {message_of(error)}.") from error
    reasons: list[str] = []
    try:
        for feed in random_feeds(session.get_inputs()):
            try:
                outputs = run_numbers(onnxruntime, session, feed)
            except NotCompared:
                raise
            except Exception as error:
                reasons.append(f"the model does not run on random inputs of its declared shapes: {message_of(error)}.")
                continue
            if all(np.isfinite(value).all() for value in outputs.values()):
                return feed, outputs, None
            reasons.append("the model returns NaN or Inf for random inputs.")
    except NotCompared as error:
        return {}, {}, str(error)
    return {}, {}, reasons[0] if reasons else "the model declares inputs that are too large to try."


def _difference(name: str, before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> Difference:
    if before.shape != after.shape:
        raise NotCompared(f"the shape of the output `{name}` depends on the values of other tensors.")
    if not np.isfinite(after).all():
        raise NotCompared(f"the output `{name}` has NaN or Inf after compression, and none before.")
    difference = after.astype(np.float64) - before.astype(np.float64)
    missed, scale = (float(np.linalg.norm(array.astype(np.float64).ravel())) for array in (difference, before))
    relative = missed / scale if scale else float(missed > 0)
    return Difference(name, float(np.abs(difference).max(initial=0)), relative)
