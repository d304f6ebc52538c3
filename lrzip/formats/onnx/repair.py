"""Repair ONNX models that onnxruntime accepts and other tools do not."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.core.limited import Limits, run_limited
from lrzip.formats.onnx.graph import graphs_of
from lrzip.formats.onnx.types import output_types

# From this version of the format on, initializers need not be inputs of the graph.
_CONSTANT_INITIALIZERS = 4
_MEMORY, _SECONDS = 1 << 29, 60.0


def repair(path: Path, model: ir.Model) -> Sequence[str]:
    """Repair a model in place.

    Args:
        path: Path of the model, for messages.
        model: The model.

    Returns:
        A sentence about each repair.

    Raises:
        UnsupportedCheckpoint: The nodes form a circle.
    """
    return [
        *_fix_inputs(model),
        *_sort(path, model),
        *_fix_name(model),
        *_import_domains(model),
        *_type_outputs(model),
    ]


def _fix_inputs(model: ir.Model) -> Iterator[str]:
    """Take initializers that are also inputs of the graph as constants.

    Before version 4 of the format all initializers are inputs. In later versions, inputs with an initializer have a
    default that callers may override: if some initializers are no inputs, only weights are taken as constants.
    """
    inputs = [value for value in model.graph.inputs if value.const_value is not None]
    is_old = model.ir_version < _CONSTANT_INITIALIZERS
    are_all = len(inputs) == len(model.graph.initializers)
    dropped = [value for value in inputs if is_old or are_all or _is_weight(value)]
    for value in dropped:
        model.graph.inputs.remove(value)
    if dropped:
        count = f"{len(dropped)} initializers that are also inputs" if len(dropped) > 1 else "An initializer that is"
        verb = "of the graph are" if len(dropped) > 1 else "also an input of the graph is"
        named = "constants" if len(dropped) > 1 else "a constant"
        yield f"{count} {verb} {named} in the output, which callers cannot override."
    if is_old:
        old, model.ir_version = model.ir_version, _CONSTANT_INITIALIZERS
        yield f"The IR version of the output is {model.ir_version}, not {old}, for initializers that are constants."


def _is_weight(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and len(tensor.shape) > 1 and tensor.dtype.is_floating_point()


def _sort(path: Path, model: ir.Model) -> Iterator[str]:
    """Sort the nodes of each graph and function, so that each comes after those that it depends on."""
    graphs = [*graphs_of(model, functions=True), *_outer(model)]
    before = [[id(node) for node in graph] for graph in graphs]
    try:
        for graph in _outer(model):  # with their subgraphs
            graph.sort()
    except ValueError as error:
        raise UnsupportedCheckpoint(
            f"`{path}` has nodes that depend on each other in a circle. Export it again."
        ) from error
    if before != [[id(node) for node in graph] for graph in graphs]:
        yield "The nodes of the output are in topological order, which those of the input were not."


def _outer(model: ir.Model) -> Sequence[ir.Graph | ir.Function]:
    """Return the graph of a model and its functions, without subgraphs."""
    return [model.graph, *model.functions.values()]


def _fix_name(model: ir.Model) -> Iterator[str]:
    for graph in graphs_of(model, functions=True):
        if not graph.name:
            graph.name = "graph"
            yield "A graph without a name is named `graph`."


def _import_domains(model: ir.Model) -> Iterator[str]:
    """Import the domains of nodes, in the latest known version as onnxruntime does."""
    for graph in _outer(model):
        for domain in {node.domain for node in graph.all_nodes()}:
            if domain and domain not in graph.opset_imports:
                graph.opset_imports[domain] = _latest(domain)
                yield f"The domain `{domain}`, which nodes use, is imported."


def _latest(domain: str) -> int:
    versions = [schema.since_version for schema in onnx.defs.get_all_schemas() if schema.domain == domain]
    return max(versions, default=1)


def _type_outputs(model: ir.Model) -> Iterator[str]:
    """Give outputs without a type the one that follows from the nodes."""
    untyped = [value for value in model.graph.outputs if value.type is None]
    if not untyped:
        return
    try:
        content = bytes(ir.to_proto(model).SerializeToString())
        types = run_limited(output_types, content, limits=Limits(_MEMORY + 4 * len(content), _SECONDS))
    except Exception:  # onnx and protobuf raise exceptions of many classes; the output stays as it was
        return
    for value in untyped:
        if str(value.name) in types:
            proto = onnx.TypeProto.FromString(types[str(value.name)])
            value.type = ir.serde.deserialize_type_proto_for_type(proto)
            value.shape = ir.serde.deserialize_type_proto_for_shape(proto)
            yield f"The output `{value.name}` gets its type, {value.type}, which it lacked."
