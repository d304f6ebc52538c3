"""Multiplications of a run of an ONNX model.

The shapes that onnx infers suffice for most models. If they do not, or if nodes that multiply lie within branches or
loops, the model is run in onnxruntime.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lrzip.core.costs import Multiplications
from lrzip.core.errors import LimitReached, LrzipError, one_line
from lrzip.core.limited import Limits, run_limited
from lrzip.formats.onnx.execution import Executed, execute
from lrzip.formats.onnx.shapes import Shape, infer, input_shapes, with_inputs
from lrzip.formats.onnx.tally import nodes_of, tally_executed, tally_inferred

# Limits of a run: seconds, and bytes beyond some copies of the model.
_SECONDS, _NBYTES, _COPIES = 60.0, 1 << 30, 4


def count(path: Path, model: Any, nbytes: int, sizes: Sequence[Sequence[int]]) -> Multiplications:
    """Return the multiplications of one run of a model, with positions by the name of the weight.

    Args:
        path: Path of the model.
        model: The model as protocol buffer, without local functions; its nodes are renamed.
        nbytes: Size of the model with its external data.
        sizes: Shapes of the inputs in their order. If empty, the declared ones are used, with a batch of size 1.

    Raises:
        LrzipError: The model does not take inputs of these shapes.
    """
    candidates = list(input_shapes(path, model, sizes))
    inferred = []
    for shapes in candidates:
        tally = tally_inferred(infer(with_inputs(model, shapes)))
        if not tally.missing:
            return tally.result(shapes)
        inferred.append(tally)
    try:
        shapes, executed = _run(path, model, nbytes, candidates)
    except LimitReached as error:
        why = str(error)
    except LrzipError as error:
        if sizes:
            raise LrzipError(f"`{path}` does not run on inputs of these sizes: {error}.") from error
        why = str(error)
    else:
        return tally_executed(model.graph, executed).result(shapes)
    best = min(range(len(candidates)), key=lambda index: inferred[index].missing.total())
    return inferred[best].result(candidates[best], why)


def _run(
    path: Path, model: Any, nbytes: int, candidates: Sequence[Mapping[str, Shape]]
) -> tuple[Mapping[str, Shape], Sequence[Executed]]:
    """Run a model on inputs of the first shapes that it takes; return these and the executed nodes.

    Raises:
        LimitReached: It takes too much memory or time, or onnxruntime is not installed.
        LrzipError: It does not run.
    """
    if find_spec("onnxruntime") is None:
        raise LimitReached("running it needs onnxruntime: `pip install 'lrzip-nn[onnx]'`")
    for number, (node, _) in enumerate(nodes_of(model.graph, {})):
        node.name = f"node_{number}"
    limits = Limits(_NBYTES + _COPIES * nbytes, _SECONDS)
    try:
        data = model.SerializeToString()
        number, executed = run_limited(execute, data, path.absolute().parent, candidates, limits=limits)
    except (RuntimeError, ValueError) as error:
        raise LimitReached(one_line(error)) from error
    return candidates[number], executed
