"""Find the layers of an ONNX model: the constants that nodes use as weights."""

import ast
import re
from collections.abc import Container, Iterator, Mapping, Sequence

import onnx_ir as ir

from lrzip.core.kinds import CONVOLUTIONS, LINEAR, LINEAR_TRANSPOSED, TRANSPOSED_CONVOLUTIONS, Kind
from lrzip.core.layers import Keep, Layer
from lrzip.core.structure import parents_of_parts
from lrzip.formats.onnx.folding import OWN_DOMAIN, Constant, tensor_of
from lrzip.networks.weights import not_a_weight

SCOPES = "pkg.torch.onnx.name_scopes"
# Runtimes compute convolutions in blocks of this many channels.
_CHANNEL_BLOCK = 8
_MEANINGLESS = re.compile(r"val_\d+|\d+|onnx::\w+|_?v_?\d+|const\w*\d|/?Constant\w*", re.IGNORECASE)
_QUANTIZED = re.compile(r"ConvInteger|MatMulInteger|QLinear\w+|QuantizeLinear|DequantizeLinear|DynamicQuantizeLinear")
_RECURRENT = ("LSTM", "GRU", "RNN")
_WEIGHT_INPUT = 1
_BIAS_INPUT = 2


def graphs_of(model: ir.Model, *, functions: bool = False) -> Sequence[ir.Graph]:
    """Return the graph of a model and its subgraphs, the bodies of If and Loop nodes.

    Args:
        model: The model.
        functions: Whether to include the subgraphs of its functions.
    """
    inner = [graph for function in model.functions.values() for graph in function.subgraphs()] if functions else []
    return [model.graph, *model.graph.subgraphs(), *inner]


def nodes_of(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the nodes of all graphs and functions."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def names_of(model: ir.Model) -> set[str]:
    """Return the names of all values and nodes."""
    names = {value.name for graph in graphs_of(model) for value in (*graph.inputs, *graph.initializers.values())}
    for node in model.graph.all_nodes():
        names |= {node.name, *(output.name for output in node.outputs)}
    return {name for name in names if name}


def constants_of(model: ir.Model) -> dict[str, Constant]:
    """Return the initializers of all graphs and the floating-point arrays of Constant nodes, by unique names.

    Those behind nodes that cast or rearrange them are folded if that makes them weights of layers.
    """
    found: dict[str, ir.Value] = {}
    for graph in graphs_of(model):
        constants = [node.outputs[0] for node in graph if node.op_type == "Constant" and _holds_floats(node)]
        for value in [*graph.initializers.values(), *constants]:
            if tensor_of(value) is not None:
                found[_unique(str(value.name), found)] = value
    values = set(found.values())
    return {name: _constant(value, values) for name, value in found.items()}


def _constant(value: ir.Value, constants: set[ir.Value]) -> Constant:
    tensor = tensor_of(value)
    assert tensor is not None
    folded = Constant.folded(value, tensor)
    if folded is not None and not isinstance(_layer(str(value.name), folded, constants), str):
        return folded
    return Constant.plain(value, tensor)


def find_layers(constants: Mapping[str, Constant], taken: set[str]) -> Sequence[Layer | Keep]:
    """Return the constants that are weights of layers, and all others with the reason why they are kept.

    Args:
        constants: Constants by name.
        taken: Names of all values, which the factors of a layer must not get.
    """
    names = parents_of_parts(taken)  # below these, tensors of structures may have no place
    values = {constant.value for constant in constants.values()}
    found: list[Layer | Keep] = []
    for name, constant in constants.items():
        spec = constant.spec(name)
        what = _layer(name, constant, values)
        label = _unique(_label(name, constant), names)
        names.add(label)
        if isinstance(what, str):
            found.append(Keep(label, spec, what))
            continue
        kind, groups = what
        multiple = _CHANNEL_BLOCK if kind.is_convolution else 1
        found.append(Layer(label, label, kind, spec, None, groups, multiple))
    return found


def _layer(name: str, constant: Constant, constants: set[ir.Value]) -> tuple[Kind, int] | str:
    """Return the kind and groups of the layer with a constant as weight, or the reason why there is none."""
    return _refused(constant) or not_a_weight(constant.spec(name)) or _what(constant, constants)


def find_bias(constants: Mapping[str, Constant], weight: str) -> str | None:
    """Return the name of the constant that is added to all products with a weight, and used for nothing else.

    It is the third input of Conv and Gemm, or what an Add behind a MatMul adds.
    """
    names = {constant.value: name for name, constant in constants.items()}
    found = {_added_to(use.node) for use in constants[weight].uses}
    (added,) = found if len(found) == 1 else (None,)
    if added is None or added not in names or added.is_graph_input():
        return None
    name = names[added]
    is_alone = len(added.uses()) == len(constants[weight].uses)
    return name if is_alone and len(constants[name].tensor.shape) == 1 else None


def _added_to(node: ir.Node) -> ir.Value | None:
    if node.op_type != "MatMul":
        return node.inputs[_BIAS_INPUT] if len(node.inputs) > _BIAS_INPUT else None
    users = [usage.node for output in node.outputs for usage in output.uses()]
    if len(users) != 1 or users[0].op_type != "Add":
        return None
    return next((value for value in users[0].inputs if value is not node.outputs[0]), None)


def integer(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute of a node, or the default if it is absent."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _unique(name: str, taken: Container[str]) -> str:
    """Return a name, with a number appended if it is taken."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def _holds_floats(node: ir.Node) -> bool:
    tensor = tensor_of(node.outputs[0])
    return tensor is not None and len(tensor.shape) > 0 and tensor.dtype.is_floating_point()


def _refused(constant: Constant) -> str | None:
    """Return why a constant must not be replaced whatever its shape, or None."""
    if constant.is_input:
        return "also an input of the graph, which may override it"
    if constant.value.is_graph_output():
        return "an output of the graph"
    users = [use.node.op_type for use in constant.uses]
    quantized = next((user for user in users if _QUANTIZED.fullmatch(user)), None)
    if quantized:
        return f"quantized, for {quantized}"
    recurrent = next((user for user in users if user in _RECURRENT), None)
    return f"recurrent weight of {recurrent}" if recurrent else None


def _what(constant: Constant, constants: set[ir.Value]) -> tuple[Kind, int] | str:
    """Return the kind and groups of the layers that use a constant as weight, or the reason why it is not a weight."""
    shape = constant.spec("").shape
    found = {_use(use.node, use.position, shape, constants) for use in constant.uses}
    reasons = sorted(what for what in found if isinstance(what, str))
    if reasons or not found:
        return reasons[0] if reasons else "not used by any node"
    kinds = sorted((what for what in found if isinstance(what, tuple)), key=str)
    if len(kinds) > 1:
        return f"shared by nodes that use it differently, as {kinds[0][0]} and {kinds[1][0]}"
    return kinds[0]


def _use(node: ir.Node, index: int, shape: Sequence[int], constants: set[ir.Value]) -> tuple[Kind, int] | str:
    """Return the kind and groups of the layer that a node with this weight is, or the reason why it is not a layer."""
    if node.domain not in OWN_DOMAIN:
        return f"used by {node.op_type} of the custom domain {node.domain}"
    if len(node.outputs) != 1 or len(node.inputs) < _WEIGHT_INPUT + 1:
        return f"used by {node.op_type}, which lacks inputs or an output"
    if node.op_type == "MatMul":
        other = node.inputs[1 - index]
        if len(shape) != 2:
            return f"{len(shape)}-dimensional, multiplied by MatMul"
        if other in constants:
            return "multiplied by another constant"
        return (LINEAR_TRANSPOSED if index else LINEAR), 1
    if index != _WEIGHT_INPUT or node.op_type not in ("Gemm", "Conv", "ConvTranspose"):
        return f"used by {node.op_type}"
    if node.op_type == "Gemm":
        if len(shape) != 2:
            return f"{len(shape)}-dimensional, multiplied by Gemm"
        if integer(node, "transA", 0):
            return "multiplied by Gemm with transA"
        return (LINEAR if integer(node, "transB", 0) else LINEAR_TRANSPOSED), 1
    if not 3 <= len(shape) <= 5:
        return f"{len(shape)}-dimensional, used by {node.op_type}"
    groups = integer(node, "group", 1)
    if groups < 1 or shape[0] % groups:
        return f"{groups} groups do not divide its {shape[0]} channels"
    if groups > 1 and shape[1] == 1:
        return "depthwise convolution"
    kinds = CONVOLUTIONS if node.op_type == "Conv" else TRANSPOSED_CONVOLUTIONS
    return kinds[len(shape) - 2], groups


def _label(name: str, constant: Constant) -> str:
    """Return the name of a layer: that of its weight, or of its node if an exporter invented the weight's name."""
    node = next((use.node for use in constant.uses), None)
    if node is None or not _MEANINGLESS.fullmatch(name):
        return name.removesuffix(".weight")
    return _scope(node) or node.name or name


def _scope(node: ir.Node) -> str | None:
    """Return the path of the module that a node was exported from: the innermost named scope around the node."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    texts = [scope for scope in scopes if isinstance(scope, str)] if isinstance(scopes, list) else []
    return next((scope for scope in reversed(texts[:-1]) if scope), None)
