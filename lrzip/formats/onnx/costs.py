"""Multiplications of a run of an ONNX model.

The shapes that onnx infers suffice for most models. If they do not, or if nodes that multiply lie within branches or
loops, the model is run in onnxruntime.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrzip.core.costs import Multiplications
from lrzip.core.errors import LimitReached, LrzipError, one_line
from lrzip.core.limited import run_limited
from lrzip.formats.onnx.execution import Executed, execute
from lrzip.formats.onnx.run import is_installed, limits_of
from lrzip.formats.onnx.shapes import Shape, infer, input_shapes, with_inputs
from lrzip.formats.onnx.tally import nodes_of, tally_executed, tally_inferred


@dataclass(frozen=True)
class Subject:
    """A model whose multiplications are counted.

    Attributes:
        path: Path of the model.
        model: The model as protocol buffer, without local functions; its nodes are renamed.
        nbytes: Size of the model with its external data.
        limits: Bounds of integer inputs by name.
    """

    path: Path
    model: Any
    nbytes: int
    limits: Mapping[str, int]


def count(subject: Subject, sizes: Sequence[Sequence[int]]) -> Multiplications:
    """Return the multiplications of one run of a model, with positions by the name of the weight.

    Args:
        subject: The model.
        sizes: Shapes of the inputs in their order. If empty, the declared ones are used, with a batch of size 1.

    Raises:
        LrzipError: The model does not take inputs of these shapes.
    """
    path, model = subject.path, subject.model
    candidates = list(input_shapes(path, model, sizes))
    inferred = []
    for shapes in candidates:
        tally = tally_inferred(infer(with_inputs(model, shapes)))
        if not tally.missing:
            return tally.result(shapes)
        inferred.append(tally)
    try:
        shapes, executed = _run(subject, candidates)
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


def _run(subject: Subject, candidates: Sequence[Mapping[str, Shape]]) -> tuple[Mapping[str, Shape], Sequence[Executed]]:
    """Run a model on inputs of the first shapes that it takes; return these and the executed nodes.

    Raises:
        LimitReached: It takes too much memory or time, or onnxruntime is not installed.
        LrzipError: It does not run.
    """
    if not is_installed():
        raise LimitReached("running it needs onnxruntime: `pip install 'lrzip-nn[onnx]'`")
    for number, (node, _) in enumerate(nodes_of(subject.model.graph, {})):
        node.name = f"node_{number}"
    folder, limits = subject.path.absolute().parent, limits_of(subject.nbytes)
    try:
        data = subject.model.SerializeToString()
        number, executed = run_limited(execute, data, folder, candidates, subject.limits, limits=limits)
    except (RuntimeError, ValueError) as error:
        raise LimitReached(one_line(error)) from error
    return candidates[number], executed
