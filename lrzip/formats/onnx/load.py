"""Load ONNX models."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir

from lrzip.core.errors import UnsupportedCheckpoint, one_line
from lrzip.formats.onnx.data import external_file
from lrzip.formats.onnx.functions import check_functions
from lrzip.formats.onnx.graph import graphs_of, nodes_of
from lrzip.formats.onnx.inline import inline_functions
from lrzip.formats.onnx.repair import repair


def load_model(path: Path) -> tuple[ir.Model, Sequence[str]]:
    """Parse a model without its external data, and repair what other tools are stricter about than onnxruntime.

    Returns:
        The model, and a sentence about each repair.

    Raises:
        UnsupportedCheckpoint: The model is damaged, or contains something that would be lost when it is written.
    """
    absolute = path.absolute()  # onnx resolves external data relative to the model, not to the working directory
    proto = onnx.load(str(absolute), format="protobuf", load_external_data=False)
    if not proto.HasField("graph"):
        raise UnsupportedCheckpoint(f"`{path}` is damaged or not a checkpoint: it has no graph.")
    if proto.training_info:
        raise UnsupportedCheckpoint(f"`{path}` holds training information. Export it for inference.")
    _refuse_sparse(path, proto.graph)
    check_functions(path, proto)
    try:
        with _silenced():
            model = ir.from_proto(proto)
    except ir.serde.SerdeError as error:
        raise UnsupportedCheckpoint(f"`{path}` is damaged or not a checkpoint: {root_cause(error)}.") from error
    for tensor in external_tensors(model):
        tensor.base_dir = str(absolute.parent)
    inline_functions(model)
    return model, [*_renamed_domain(proto), *repair(path, model)]


def serialize(path: Path, model: ir.Model) -> onnx.ModelProto:
    """Return a model as a message.

    Raises:
        UnsupportedCheckpoint: The model contains values that no message can hold.
    """
    try:
        return ir.to_proto(model)
    except Exception as error:  # of many classes, for names and types that are not valid
        raise UnsupportedCheckpoint(f"`{path}` cannot be rewritten: {root_cause(error)}.") from error


def _renamed_domain(proto: onnx.ModelProto) -> Iterator[str]:
    """Yield a sentence if nodes have the other name of ONNX's own domain, which onnx-ir replaces."""
    named = any(node.domain == _OTHER_NAME for node in proto.graph.node)
    if named and all(opset.domain != _OTHER_NAME for opset in proto.opset_import):
        yield f"Nodes of the domain `{_OTHER_NAME}` have its other name, which the model imports."


_OTHER_NAME = "ai.onnx"


def files_of(path: Path, model: ir.Model) -> Sequence[Path]:
    """Return the file of a model and the files of its external data.

    Raises:
        UnsupportedCheckpoint: A file is missing, too short, or outside of the model's folder.
    """
    return [path, *sorted({external_file(path, tensor) for tensor in external_tensors(model)})]


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Yield the tensors of initializers and attributes whose data is in other files."""
    for graph in graphs_of(model, functions=True):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
    for node in nodes_of(model):
        for attribute in node.attributes.values():
            values = attribute.value if isinstance(attribute.value, Sequence) else [attribute.value]
            yield from (value for value in values if isinstance(value, ir.ExternalTensor))


def root_cause(error: BaseException) -> str:
    """Return the message of the first exception in a chain of causes, as a part of one line."""
    while error.__cause__:
        error = error.__cause__
    return one_line(error)


@contextmanager
def _silenced() -> Iterator[None]:
    """Suppress the log messages of onnx_ir about models that are not valid, which are refused where that matters."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _refuse_sparse(path: Path, graph: onnx.GraphProto) -> None:
    if graph.sparse_initializer:
        raise UnsupportedCheckpoint(f"`{path}` has sparse initializers. Save it with dense ones.")
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                _refuse_sparse(path, body)
