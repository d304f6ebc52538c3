"""Sessions of onnxruntime: start one for a model, and run it with messages of one line."""

import re
from collections.abc import Sequence
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import torch

from lrzip.core.errors import LrzipError, NotCompared, as_line, one_line
from lrzip.formats.onnx.feeds import Arrays

_FATAL = 4
# Limit of a run in seconds, since a model may run for any time.
_SECONDS = 60.0


def runtime() -> Any:
    """Import onnxruntime, which is optional.

    Raises:
        NotCompared: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise NotCompared("onnxruntime is not installed. Get it with `pip install 'lrzip-nn[onnx]'`.") from error
    return onnxruntime


def start(model: bytes) -> Any:
    """Return a session of a serialized model.

    Raises:
        LrzipError: onnxruntime is not installed, or cannot load the model.
    """
    try:
        return new_session(runtime(), model)
    except NotCompared as error:
        raise LrzipError(f"Running the model needs onnxruntime: {error}") from error
    except Exception as error:
        raise LrzipError(f"onnxruntime cannot run the model: {message_of(error)}.") from error


def run(session: Any, names: Sequence[str], feed: Arrays) -> Arrays:
    """Return the named outputs of a model.

    Raises:
        ValueError: The model does not take the inputs.
    """
    try:
        return dict(zip(names, session.run(names, feed), strict=True))
    except Exception as error:
        raise ValueError(message_of(error)) from error


def new_session(onnxruntime: Any, model: Path | bytes) -> Any:
    """Return a deterministic session on the CPU, with the number of threads that torch uses."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.use_deterministic_compute = True
    options.intra_op_num_threads = torch.get_num_threads()
    where = str(model.absolute()) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(where, options, providers=["CPUExecutionProvider"])


def run_numbers(onnxruntime: Any, session: Any, feed: Arrays) -> Arrays:
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


def message_of(error: Exception) -> str:
    """Return the message of onnxruntime without the places in its source and the name of the file."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .* failed: ?", "", one_line(error, 10_000))
    text = re.sub(r"/onnxruntime_src/.*?\) (?=[A-Z])", "", text)
    return as_line(text, 200) or type(error).__name__
