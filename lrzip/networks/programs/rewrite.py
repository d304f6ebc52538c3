"""Programs of torch.export: recognize their layers by the graph, and replace layers in it.

Where the last operation of a structure is of the kind of the layer, it reuses the node of the layer with its name,
metadata and place among the outputs, and new nodes are inserted before it. The rest of the graph, including dynamic
shapes, is unchanged.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, OutputSpec, TensorArgument
from torch.fx import GraphModule, Node, map_arg

from lrzip.core.errors import LrzipError, one_line
from lrzip.core.layers import ROOT, Keep, Layer, TensorSpec
from lrzip.core.layout import Entry
from lrzip.core.structure import Structure, parents_of_parts
from lrzip.networks.matching import wrapper_prefix
from lrzip.networks.programs.nodes import replace_call
from lrzip.networks.programs.operators import OPERATORS, Operator, bias_of, groups_of, is_layer, signature
from lrzip.networks.programs.silence import silenced
from lrzip.networks.weights import not_a_weight


def program_layers(
    program: ExportedProgram, tensors: Mapping[str, TensorSpec], untouchable: Mapping[str, str]
) -> Sequence[Layer | Keep]:
    """Return the layers of a program by its graph, and the tensors that are kept with the reason.

    Biases are part of their layer and are not listed.

    Args:
        program: The program.
        tensors: Parameters and buffers of the program, by name.
        untouchable: Tensors that the format must not replace, with the reason.
    """
    graph = _Graph(program)
    names = _Names(
        tensors,
        wrapper_prefix(tensors, trainer=False),
        {path: name for name in reversed(list(tensors)) for path in parents_of_parts([name])},
    )
    found = [_layer(spec, graph, names, untouchable.get(spec.name)) for spec in tensors.values()]
    biases = {item.bias.name for item in found if isinstance(item, Layer) and item.bias}
    return [item for item in found if isinstance(item, Layer) or item.tensor.name not in biases]


class _Names(NamedTuple):
    """Names of the tensors of a program.

    Attributes:
        tensors: All tensors.
        prefix: Prefix of wrappers, which the names of layers omit.
        parts: For each module below which the parts of a structure would be stored, a tensor that is stored there.
    """

    tensors: Mapping[str, TensorSpec]
    prefix: str
    parts: Mapping[str, str]


def rewrite(program: ExportedProgram, layout: Sequence[Entry], computed: Mapping[str, Tensor]) -> ExportedProgram:
    """Return a program with tensors replaced, and layers replaced by structures; the argument is consumed.

    Args:
        program: Program as torch.export.export or torch.export.load returns it.
        layout: Every tensor of the result, as `Plan.layout` returns it.
        computed: The tensors that are not copied, by name.
    """
    graph = _Graph(program)
    by_origin: dict[str, list[Entry]] = {}
    for entry in layout:
        by_origin.setdefault(entry.origin, []).append(entry)
    state: dict[str, Tensor] = {}
    for origin, entries in by_origin.items():
        old = program.state_dict[origin]
        if entries[0].structure is not None:
            made = {entry.spec.name: _alike(computed[entry.spec.name], old) for entry in entries}
            graph.replace(origin, entries[0].structure, made)
            state |= made
            continue
        (entry,) = entries
        graph.rename(origin, entry.spec.name)
        value = state[entry.spec.name] = old if entry.copied else _alike(computed[entry.spec.name], old)
        if value.shape != old.shape:
            graph.resize(entry.spec.name, value)
    return graph.program({entry.spec.name: state[entry.spec.name] for entry in layout})


def _alike(tensor: Tensor, old: Tensor) -> Tensor:
    """Return a tensor to replace `old`: a parameter if `old` is one, unless the tensor holds integers."""
    value = tensor.to(old.device).clone()
    is_parameter = isinstance(old, nn.Parameter) and value.is_floating_point()
    return nn.Parameter(value, old.requires_grad) if is_parameter else value


def tensors_of(program: ExportedProgram) -> Mapping[Node, tuple[str, Any]]:
    """Return the names and values of the parameters, buffers and constants of a program, by placeholder."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    stored = {**program.constants, **program.state_dict}
    named = {spec.arg.name: str(spec.target) for spec in program.graph_signature.input_specs if spec.target is not None}
    return {nodes[place]: (name, stored[name]) for place, name in named.items() if name in stored}


def fixed_batch(program: ExportedProgram) -> int | None:
    """Return the batch size of a program, the first size of its first input, or None if it is dynamic."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [nodes[name] for name in program.graph_signature.user_inputs if isinstance(name, str) and name in nodes]
    sizes = [node.meta["val"].shape for node in inputs if getattr(node.meta.get("val"), "shape", ())]
    return sizes[0][0] if sizes and isinstance(sizes[0][0], int) else None


def load_program(path: Path) -> ExportedProgram:
    """Load a program, which may execute code from the file: torch.export.load unpickles, and evaluates expressions."""
    with path.open("rb") as file, silenced():
        return torch.export.load(file)


def write_program(program: ExportedProgram, file: IO[bytes], extra_files: Mapping[str, str] | None = None) -> None:
    """Save a program to an open file.

    Given a path instead, torch would store the name of the file in it, and outputs would depend on their names.
    """
    torch.export.save(program, file, extra_files=dict(extra_files or {}))


def _layer(spec: TensorSpec, graph: "_Graph", names: _Names, reason: str | None) -> Layer | Keep:
    """Return the layer of a tensor, or the tensor as kept; one that is not called `weight` gives the layer its name."""
    leaf = spec.name.rpartition(".")[2]
    module = spec.name.removesuffix("weight").removesuffix(".") if leaf == "weight" else spec.name
    name = module.removeprefix(names.prefix) or ROOT
    reason = reason or not_a_weight(spec) or graph.obstacle(spec.name)
    if reason:
        return Keep(name, spec, reason)
    bias = graph.bias(spec.name)
    if module in names.parts:
        return Keep(name, spec, f"its module also holds `{names.parts[module]}`")
    operator, groups = graph.operator(spec.name)
    if groups == spec.shape[0] > 1 and operator.kind.is_plain_convolution and spec.shape[1] == 1:
        return Keep(name, spec, "depthwise: nothing to share between channels")
    return Layer(name, module, operator.kind, spec, names.tensors[bias] if bias else None, groups)


class _Graph:
    """Graph of a program, with its parameters by name."""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._module: GraphModule = program.graph_module
        self._specs = list(program.graph_signature.input_specs)
        nodes = {node.name: node for node in self._module.graph.nodes if node.op == "placeholder"}
        self._placeholders = {
            str(spec.target): nodes[spec.arg.name]
            for spec in self._specs
            if spec.kind is InputKind.PARAMETER and isinstance(spec.arg, TensorArgument)
        }
        self._results: dict[str, str] = {}
        self._is_resized = False
        self._changed = {spec.target for spec in program.graph_signature.output_specs if spec.target}

    def obstacle(self, name: str) -> str | None:
        """Return why a tensor cannot be replaced as the weight of a layer, or None."""
        if name not in self._placeholders:
            return "not a parameter of the program"
        if name in self._changed:
            return "changed by the program, or with a gradient among its outputs"
        weight = self._placeholders[name]
        if not weight.users:
            return "not used by the program"
        for user in weight.users:
            if not is_layer(user, weight):
                return self._use(user)
        if len({signature(user) for user in weight.users}) > 1:
            return "used by layers of different kinds"
        return None

    def operator(self, name: str) -> tuple[Operator, int]:
        """Return the operator and the groups of the layer of a weight."""
        user = next(iter(self._placeholders[name].users))
        return OPERATORS[user.target], groups_of(user)

    def bias(self, name: str) -> str | None:
        """Return the bias that all calls with a weight, and no other node, use, or None."""
        users = self._placeholders[name].users
        biases = {bias_of(user) for user in users}
        found = [fqn for fqn, node in self._placeholders.items() if biases == {node} and set(node.users) <= set(users)]
        return found[0] if len(found) == 1 and found[0] not in self._changed else None

    def replace(self, name: str, structure: Structure, made: Mapping[str, Tensor]) -> None:
        """Replace the calls that use a weight by a structure.

        Args:
            name: Name of the weight.
            structure: Structure that replaces each call.
            made: Tensors of the structure by name, in its order.
        """
        weight = self._placeholders.pop(name)
        tensors = [self._input(weight, key, value) for key, value in made.items()]
        for user in list(weight.users):
            result = replace_call(user, structure, tensors)
            if result is not user:
                self._results[user.name] = result.name
        self._specs = [spec for spec in self._specs if spec.arg.name != weight.name]
        self._module.graph.erase_node(weight)

    def rename(self, name: str, to: str) -> None:
        """Rename a tensor; the name of its node is unchanged."""
        if name == to:
            return
        for spec in self._specs:
            if spec.target == name:
                spec.target = to

    def resize(self, name: str, value: Tensor) -> None:
        """Give the placeholder of a tensor the shape of a new value."""
        place = next(spec.arg.name for spec in self._specs if spec.target == name)
        node = next(node for node in self._module.graph.nodes if node.name == place)
        node.meta["val"] = node.meta["val"].fake_mode.from_tensor(value, static_shapes=True)
        self._is_resized = True

    def _infer_shapes(self) -> None:
        """Compute the shapes of all values again."""
        nodes = [node for node in self._module.graph.nodes if "val" in node.meta]
        mode = detect_fake_mode([node.meta["val"] for node in nodes])
        assert mode, "programs have parameters with shapes"
        for node in nodes:
            if node.op == "call_function":
                args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda argument: argument.meta["val"])
                try:
                    with mode, torch.no_grad():
                        node.meta["val"] = node.target(*args, **kwargs)
                except Exception as error:
                    raise LrzipError(
                        f"`{node.target}` in the program takes no other sizes: {one_line(error)}. Take the layers that "
                        "get smaller out of the plan."
                    ) from error

    def program(self, state: Mapping[str, Tensor]) -> ExportedProgram:
        """Return the program of this graph, which torch verifies."""
        if self._is_resized:
            self._infer_shapes()
        self._module.graph.lint()
        self._module.recompile()
        old = self._program
        return ExportedProgram(
            root=self._module,
            graph=self._module.graph,
            graph_signature=ExportGraphSignature(self._specs, self._outputs()),
            state_dict=dict(state),
            range_constraints=dict(old.range_constraints),
            module_call_graph=old.module_call_graph,
            example_inputs=old.example_inputs,
            constants=dict(old.constants),
            verifiers=old.verifiers,
        )

    def _outputs(self) -> list[OutputSpec]:
        """Return the specs of the outputs, some of which are computed by new nodes."""
        specs = list(self._program.graph_signature.output_specs)
        for spec in specs:
            if isinstance(spec.arg, TensorArgument) and spec.arg.name in self._results:
                spec.arg = TensorArgument(name=self._results[spec.arg.name])
        return specs

    def _input(self, before: Node, name: str, value: Tensor) -> Node:
        """Insert the placeholder of a parameter or buffer before that of the weight it replaces."""
        graph, is_parameter = self._module.graph, isinstance(value, nn.Parameter)
        with graph.inserting_before(before):
            node = graph.placeholder(f"{'p' if is_parameter else 'b'}_{name.replace('.', '_')}")
        node.target = node.name
        fake = before.meta["val"].fake_mode.from_tensor(value, static_shapes=True)
        node.meta = {**before.meta, "val": fake}
        position = next(index for index, spec in enumerate(self._specs) if spec.arg.name == before.name)
        kind, persistent = (InputKind.PARAMETER, None) if is_parameter else (InputKind.BUFFER, True)
        self._specs.insert(position, InputSpec(kind, TensorArgument(name=node.name), name, persistent))
        return node

    def _use(self, user: Node) -> str:
        """Describe a use of a weight that is not the call of a layer."""
        if user.op == "output":
            return "an output of the program"
        if isinstance(user.target, torch._ops.HigherOrderOperator):
            return f"used within `{user.target}`, a part of the program with a graph of its own"
        decomposed = any(verifier.dialect != "TRAINING" for verifier in self._program.verifiers)
        advice = "; the program is decomposed, so re-export it without run_decompositions" if decomposed else ""
        return f"used by `{user.target}`, not as the weight of a layer{advice}"
