"""Replace calls of the functions of an ONNX model by their nodes."""

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass


def inline_functions(model: ir.Model) -> None:
    """Replace each call of a function by the nodes of the function, whose constants are not copied.

    Args:
        model: A model whose functions do not unfold to too many nodes.
    """
    if not model.functions:
        return
    InlinePass()(model)
    copies: dict[int, list[ir.Node]] = {}
    for node in model.graph.all_nodes():
        attribute = node.attributes.get("value") if node.op_type == "Constant" else None
        if attribute is not None and attribute.type is ir.AttributeType.TENSOR:
            copies.setdefault(id(attribute.value), []).append(node)
    for nodes in copies.values():
        if len(nodes) > 1:
            _share(model.graph, nodes)


def _share(graph: ir.Graph, constants: Sequence[ir.Node]) -> None:
    """Replace Constant nodes of the same tensor by one initializer."""
    tensor, name = constants[0].attributes["value"].as_tensor(), constants[0].outputs[0].name
    shared = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    for node in constants:
        node.outputs[0].replace_all_uses_with(shared, replace_graph_outputs=True)
        if node.graph is not None:
            node.graph.remove(node, safe=True)
    graph.register_initializer(shared)
