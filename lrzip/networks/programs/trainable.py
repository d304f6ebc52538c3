"""Turn programs of torch.export into networks that can be trained.

A graph is specialized to the mode in which it was exported, and updates the statistics of batch norms by nodes of its
own. Therefore its batch norms and dropouts are replaced by modules at the paths of their tensors. The result can be
switched between training and evaluation like any network, whichever mode it was exported in.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

from lrzip.core.errors import UnsupportedCheckpoint

_ATEN = torch.ops.aten
_BATCH_NORMS: dict[int, type[_BatchNorm]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
_LEAVES = ("weight", "bias", "running_mean", "running_var")
# Arguments of operators that select the training mode or a probability of dropping elements.
_MODES = ("train", "training", "dropout_p")


def network_of(program: ExportedProgram, path: Path) -> nn.Module:
    """Return a program as a network whose state_dict has the names of the program.

    Args:
        program: The program; the network takes over its tensors.
        path: Path of its file, for messages.

    Raises:
        UnsupportedCheckpoint: The batch size of the program is fixed, or an operator in training mode cannot be
            switched to evaluation.
    """
    _refuse_fixed_batch(program, path)
    traced = program.module()
    assert isinstance(traced, GraphModule)
    values = {**dict(traced.named_parameters()), **dict(traced.named_buffers())}
    network = GraphModule(traced, traced.graph)
    for node in list(network.graph.nodes):
        if node.target is _ATEN.batch_norm.default and node.args[3] is None:
            continue  # without running statistics both modes are the same
        if node.target is _ATEN.batch_norm.default and _is_of_a_module(node, values):
            _restore_batch_norm(network, node, values)
        elif node.target is _ATEN.dropout.default:
            _replace(network, node, f"{node.name}_mode", nn.Dropout(node.args[1]))
        elif node.op == "call_function" and _is_in_training(node):
            raise UnsupportedCheckpoint(
                f"`{path}` was exported in training mode with `{node.target}`, which cannot be switched to evaluation. "
                "Export it in evaluation mode to finetune it."
            )
    for name, buffer in list(network.named_buffers()):
        if name not in program.state_dict:  # a constant or a non-persistent buffer
            module, _, leaf = name.rpartition(".")
            network.get_submodule(module).register_buffer(leaf, buffer, persistent=False)
    network.recompile()
    return network


def _refuse_fixed_batch(program: ExportedProgram, path: Path) -> None:
    names = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT}
    for node in program.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" and node.name in names else None
        if isinstance(value, Tensor) and not (value.ndim and type(value.shape[0]) is not int):
            raise UnsupportedCheckpoint(
                f"`{path}` takes `{node.name}` only in the shape {tuple(value.shape)}. Export it with a dynamic "
                "first dimension, the batch, to finetune it."
            )


def _is_of_a_module(node: Node, values: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors of a batch norm are, by their names, exactly those of one module."""
    mean = str(getattr(node.args[3], "target", ""))
    path = mean.removesuffix(".running_mean")
    own = {f"{path}.{leaf}" for leaf in (*_LEAVES, "num_batches_tracked")}
    return path != mean and all(name in own for name in values if name.startswith(f"{path}."))


def _restore_batch_norm(network: GraphModule, node: Node, values: Mapping[str, Tensor]) -> None:
    """Replace a batch norm with running statistics by a module, and remove the node that counts batches."""
    tensors = dict(zip(_LEAVES, node.args[1:5], strict=True))
    mean = str(getattr(node.args[3], "target", ""))
    path = mean.removesuffix(".running_mean")
    found: dict[str, Tensor | None] = {
        leaf: values[str(tensor.target)] if isinstance(tensor, Node) else None for leaf, tensor in tensors.items()
    }
    x: Any = node.args[0]
    momentum, epsilon = node.args[6:8]
    count = values.get(f"{path}.num_batches_tracked")
    module = _BATCH_NORMS[x.meta["val"].ndim](len(values[mean]), float(epsilon), float(momentum))  # type: ignore[arg-type]
    for leaf in ("weight", "bias"):
        module.register_parameter(leaf, found[leaf])  # type: ignore[arg-type]
    for leaf in ("running_mean", "running_var"):
        module.register_buffer(leaf, found[leaf])
    module.register_buffer("num_batches_tracked", count)
    for counter in [n for n in network.graph.nodes if n.op == "get_attr" and n.target == f"{path}.num_batches_tracked"]:
        for user in list(counter.users):
            network.graph.erase_node(user)
    _replace(network, node, path, module)


def _replace(network: GraphModule, node: Node, path: str, module: nn.Module) -> None:
    network.add_submodule(path, module)
    with network.graph.inserting_before(node):
        called = network.graph.call_module(path, (node.args[0],))
    node.replace_all_uses_with(called)
    network.graph.erase_node(node)


def _is_in_training(node: Node) -> bool:
    """Return whether an operator is called with arguments that only apply in training."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)) | node.kwargs
    return any(given.get(name) for name in _MODES)
