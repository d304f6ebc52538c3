"""Run an ONNX model with inner values as further outputs, in a process of its own."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from lrzip.core.errors import LrzipError
from lrzip.formats.onnx.feeds import Arrays, Sample, feeds_of
from lrzip.formats.onnx.run import new_session, run


def record(path: Path, names: Sequence[str], samples: Sequence[Sample], threads: int) -> Iterator[Arrays]:
    """Yield the values of a model on samples, one call at a time.

    A batch that takes too much memory is split, unless the model declares its size.

    Args:
        path: Path of the model.
        names: Names of the values.
        samples: Inputs of each call.
        threads: Number of threads.

    Raises:
        LrzipError: onnxruntime cannot load the model.
        ValueError: The model does not take the samples.
    """
    model = onnx.load(str(path.absolute()))
    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    try:
        session = new_session(model.SerializeToString(), threads)
    except ValueError as error:
        raise LrzipError(f"onnxruntime cannot run the model: {error}.") from error
    del model
    inputs = session.get_inputs()
    computed = [name for name in names if name not in {value.name for value in inputs}]
    is_open = not any(isinstance(value.shape[0], int) for value in inputs if value.shape)
    for sample in samples:
        for feed in feeds_of(inputs, sample):
            for values in _values(session, computed, feed, is_open=is_open):
                yield {name: np.asarray(values[name]) for name in names}


def _values(session: Any, names: Sequence[str], feed: Arrays, *, is_open: bool) -> Iterator[Mapping[str, Any]]:
    try:
        found = run(session, names, feed) if names else {}
    except MemoryError:
        size = len(next(iter(feed.values())))
        if not is_open or size < 2:
            raise
    else:
        yield {**feed, **found}
        return
    for part in (slice(size // 2), slice(size // 2, None)):
        yield from _values(session, names, {name: array[part] for name, array in feed.items()}, is_open=is_open)
