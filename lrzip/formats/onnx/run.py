"""Run ONNX models in onnxruntime: compare the outputs or the run times of two models on the same random inputs."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from threading import Timer
from typing import Any, TypeAlias

import numpy as np
import torch

from lrzip.core.costs import Latency
from lrzip.core.errors import LrzipError, NotCompared, as_line, one_line
from lrzip.core.report import Difference
from lrzip.networks.timing import time_alternately

Arrays: TypeAlias = Mapping[str, np.ndarray[Any, Any]]
_SEED = 0
# Sizes that are tried for symbolic dimensions: of the first dimension of a shape, and of the others.
_SIZES = ((2, 2), (1, 4), (1, 32), (1, 512), (1, 256), (32, 32), (256, 256))
_FLOATS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
_INTEGERS = {f"tensor({sign}int{bits})": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}
# Integers are 0 or 1, which are valid indices of any table and valid values of a mask.
_INTEGER_LIMIT = 2
_FATAL = 4
# Limits of the inputs and of a run, since a model may declare any size.
_MOST_ELEMENTS = 1 << 24
_SECONDS = 60.0


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
    onnxruntime = _runtime()
    if 2 * nbytes > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise NotCompared("running the model may take more memory than is available.")
    feed, before, reason = _dense_run(onnxruntime, dense)
    try:
        session = _session(onnxruntime, small)
        after = {} if reason else _run(onnxruntime, session, feed)
    except NotCompared:
        raise
    except Exception as error:
        raise LrzipError(
            f"`{small.name}` would not run in onnxruntime, unlike the original model: {_line(error)}."
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
        onnxruntime = _runtime()
        sessions = [_session(onnxruntime, path) for path in (dense, small)]
        inputs = sessions[0].get_inputs()
        shapes = sizes or [[size if isinstance(size, int) else 1 for size in item.shape] for item in inputs]
        generator = np.random.default_rng(_SEED)
        feed = {i.name: _random(generator, i.type, tuple(s)) for i, s in zip(inputs, shapes, strict=True)}
        return time_alternately(*(partial(session.run, None, feed) for session in sessions))
    except Exception:  # onnxruntime raises exceptions of many classes for unsuitable inputs
        return None


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise NotCompared("onnxruntime is not installed. Get it with `pip install 'lrzip-nn[onnx]'`.") from error
    return onnxruntime


def _dense_run(onnxruntime: Any, path: Path) -> tuple[Arrays, Arrays, str | None]:
    """Return random inputs for which a model has finite outputs, these outputs, and the reason if there are none."""
    try:
        session = _session(onnxruntime, path)
    except Exception as error:
        raise NotCompared(f"the model does not run in onnxruntime: {_line(error)}.") from error
    reasons: list[str] = []
    try:
        for feed in _feeds(session.get_inputs()):
            try:
                outputs = _run(onnxruntime, session, feed)
            except NotCompared:
                raise
            except Exception as error:
                reasons.append(f"the model does not run on random inputs of its declared shapes: {_line(error)}.")
                continue
            if all(np.isfinite(value).all() for value in outputs.values()):
                return feed, outputs, None
            reasons.append("the model returns NaN or Inf for random inputs.")
    except NotCompared as error:
        return {}, {}, str(error)
    return {}, {}, reasons[0] if reasons else "the model declares inputs that are too large to try."


def _feeds(inputs: Sequence[Any]) -> Iterator[Arrays]:
    """Yield random inputs of the declared shapes, with other sizes of the symbolic dimensions each time."""
    for item in inputs:
        if item.type not in {*_FLOATS, *_INTEGERS, "tensor(bool)"}:
            raise NotCompared(f"the input `{item.name}` is a {item.type}.")
    tried: list[list[tuple[int, ...]]] = []
    for first, other in _SIZES:
        named: dict[str, int] = {}
        shapes = [_shape(item.shape, named, first, other) for item in inputs]
        if shapes not in tried and all(prod(shape) <= _MOST_ELEMENTS for shape in shapes):
            tried.append(shapes)
            generator = np.random.default_rng(_SEED)
            yield {i.name: _random(generator, i.type, shape) for i, shape in zip(inputs, shapes, strict=True)}


def _shape(declared: Sequence[object], named: dict[str, int], first: int, other: int) -> tuple[int, ...]:
    sizes = []
    for axis, size in enumerate(declared):
        chosen = other if axis else first
        if isinstance(size, int) and size >= 0:
            chosen = size
        elif isinstance(size, str):
            chosen = named.setdefault(size, chosen)
        sizes.append(chosen)
    return tuple(sizes)


def _random(generator: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    if kind in _FLOATS:
        return np.asarray(generator.standard_normal(shape)).astype(_FLOATS[kind])
    dtype = _INTEGERS.get(kind, np.dtype(bool))
    return np.asarray(generator.integers(_INTEGER_LIMIT, size=shape)).astype(dtype)


def start(model: bytes) -> Any:
    """Return a session of a model in memory.

    Raises:
        LrzipError: onnxruntime is not installed, or cannot run it.
    """
    try:
        return _session(_runtime(), model)
    except NotCompared as error:
        raise LrzipError(f"To run the model takes onnxruntime: {error}") from error
    except Exception as error:
        raise LrzipError(f"onnxruntime cannot run the model: {_line(error)}.") from error


def run(session: Any, names: Sequence[str], feed: Arrays) -> Arrays:
    """Return the named outputs of a model.

    Raises:
        ValueError: The model does not take the inputs.
    """
    try:
        return dict(zip(names, session.run(names, feed), strict=True))
    except Exception as error:
        raise ValueError(_line(error)) from error


def _session(onnxruntime: Any, model: Path | bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.use_deterministic_compute = True
    options.intra_op_num_threads = torch.get_num_threads()
    where = str(model.absolute()) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(where, options, providers=["CPUExecutionProvider"])


def _run(onnxruntime: Any, session: Any, feed: Arrays) -> Arrays:
    """Return the numerical outputs of a model.

    Raises:
        NotCompared: The run takes too long.
    """
    names = [item.name for item in session.get_outputs()]
    options = onnxruntime.RunOptions()
    options.log_severity_level = _FATAL
    timer = Timer(_SECONDS, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        values = dict(zip(names, session.run(names, feed, options), strict=True))
    except Exception as error:
        if options.terminate:
            raise NotCompared(f"the model runs for more than {_SECONDS:g} s.") from error
        raise
    finally:
        timer.cancel()
    return {n: v for n, v in values.items() if isinstance(v, np.ndarray) and v.dtype.kind in "fiub"}


def _difference(name: str, before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> Difference:
    if before.shape != after.shape:
        raise NotCompared(f"the shape of the output `{name}` depends on the values of other tensors.")
    if not np.isfinite(after).all():
        raise NotCompared(f"the output `{name}` has NaN or Inf after compression, and none before.")
    difference = after.astype(np.float64) - before.astype(np.float64)
    missed, scale = (float(np.linalg.norm(array.astype(np.float64).ravel())) for array in (difference, before))
    relative = missed / scale if scale else float(missed > 0)
    return Difference(name, float(np.abs(difference).max(initial=0)), relative)


def _line(error: Exception) -> str:
    """Return what onnxruntime says, without where in its source or in which file."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .* failed: ?", "", one_line(error, 10_000))
    text = re.sub(r"/onnxruntime_src/.*?\) (?=[A-Z])", "", text)
    return as_line(text, 200) or type(error).__name__
