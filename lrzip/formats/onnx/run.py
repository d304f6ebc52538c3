"""Sessions of onnxruntime, in processes of their own with limits of memory and time.

A model may ask for any amount of either. This file is imported in those processes, which import no torch.
"""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lrzip.core.errors import LrzipError, NotCompared, as_line, one_line
from lrzip.core.limited import Limits
from lrzip.formats.onnx.feeds import Array, Arrays

_FATAL = 4
_SECONDS = 60.0
# Memory that a run may take beyond that for the weights: what real networks need for their activations.
_ACTIVATIONS = 5 << 28
# Sessions hold the message, its tensors and repacked copies of them; two models may be open.
_COPIES = 6
_MEMORY = re.compile(r"bad_alloc|Failed to allocate memory|bad allocation", re.IGNORECASE)
# Each thread takes address space, which is what is limited.
_MOST_THREADS = 16


def limits_of(nbytes: int) -> Limits:
    """Return the limits of a run of a model.

    Args:
        nbytes: Size of its file and of what it is given.
    """
    return Limits(_ACTIVATIONS + _COPIES * nbytes, _SECONDS)


def is_installed() -> bool:
    """Return whether onnxruntime, which is optional, is installed."""
    return find_spec("onnxruntime") is not None


def require_runtime() -> None:
    """Check that onnxruntime is installed.

    Raises:
        NotCompared: It is not.
    """
    if not is_installed():
        raise NotCompared("onnxruntime is not installed. Get it with `pip install 'lrzip-nn[onnx]'`.")


def new_session(model: Path | bytes, threads: int, *, has_arena: bool = False) -> Any:
    """Return a deterministic session on the CPU.

    Args:
        model: Path of the model, or the serialized model.
        threads: Number of threads.
        has_arena: Whether freed memory is kept for reuse, as in use: faster, and more than the model needs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.use_deterministic_compute = True
    options.enable_cpu_mem_arena = has_arena
    options.intra_op_num_threads = min(threads, _MOST_THREADS)
    where = str(model.absolute()) if isinstance(model, Path) else model
    try:
        return onnxruntime.InferenceSession(where, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _raised(error) from error


def run(session: Any, names: Sequence[str], feed: Arrays) -> dict[str, Any]:
    """Return the named outputs of a model.

    Raises:
        MemoryError: The run takes too much memory.
        ValueError: The model does not take the inputs, or does not run.
    """
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = _FATAL
    try:
        return dict(zip(names, session.run(names, feed, options), strict=True))
    except Exception as error:
        raise _raised(error) from error


def run_numbers(session: Any, feed: Arrays) -> dict[str, Array]:
    """Return the numerical outputs of a model."""
    values = run(session, [item.name for item in session.get_outputs()], feed)
    return {n: v for n, v in values.items() if isinstance(v, np.ndarray) and v.dtype.kind in "fiub"}


def check_loads(model: Path | bytes, threads: int) -> None:
    """Check that onnxruntime loads a file or a serialized model.

    Raises:
        LrzipError: It does not.
    """
    try:
        new_session(model, threads)
    except ValueError as error:
        raise LrzipError(str(error)) from error


def _raised(error: Exception) -> Exception:
    return MemoryError() if _MEMORY.search(str(error)) else ValueError(message_of(error))


def message_of(error: Exception) -> str:
    """Return the message of onnxruntime without the places in its source and the name of the file."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .* failed: ?", "", one_line(error, 10_000))
    text = re.sub(r"/onnxruntime_src/.*?\) (?=[A-Z])", "", text)
    return as_line(text, 200) or type(error).__name__
