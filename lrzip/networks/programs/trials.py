"""Inputs on which programs are compared, and whether outputs depend on them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils import _pytree as pytree

from lrzip.core.errors import NotCompared
from lrzip.core.moments import Arguments
from lrzip.networks.inputs import InputShape, example_inputs

_ATEN = torch.ops.aten
# An output that changes by less, relative to its norm, as the inputs change does not show what became of the weights.
_RESPONSE = 1e-3
_TABLES: Mapping[Any, int] = {_ATEN.embedding.default: 1, _ATEN.index_select.default: 2, _ATEN.index.Tensor: 1}
"""Operators that index a table, their first argument, with the position of the indices."""
_SELECTING = ("clone", "expand", "flatten", "reshape", "select", "slice", "squeeze", "to", "unsqueeze", "view")


def trial_of(
    program: ExportedProgram, samples: Sequence[Arguments], shapes: Sequence[InputShape]
) -> tuple[str, Arguments, Arguments]:
    """Return a description of inputs of a program, the inputs, and others of the same shapes.

    Args:
        program: The program.
        samples: Calibration data, of which the first batch is taken; if empty, random inputs.
        shapes: Their shapes; if empty, the inputs that are stored in the program, unless all elements are the same.

    Raises:
        NotCompared: None of these is known.
    """
    if samples:
        return "the calibration data", samples[0], _flipped(samples[0])
    if shapes:
        inputs: Arguments = (example_inputs(shapes, shapes[0].sizes[0]), {})
        text = "random inputs of " + ", ".join(" × ".join(map(str, shape.sizes)) for shape in shapes)
        return text, randomized(program, inputs), randomized(program, inputs, seed=1)
    if program.example_inputs is None:
        raise NotCompared("the program stores no inputs. Give sizes by `input_shapes=SIZES`.")
    args, kwargs = program.example_inputs
    stored = (tuple(args), dict(kwargs))
    pairs = zip(*(pytree.tree_leaves(inputs) for inputs in (stored, randomized(program, stored))), strict=True)
    leaves = [new if isinstance(old, Tensor) and _is_constant(old) else old for old, new in pairs]
    chosen: Arguments = pytree.tree_unflatten(leaves, pytree.tree_structure(stored))
    return "the inputs that the program stores", chosen, randomized(program, stored, seed=1)


def randomized(program: ExportedProgram, inputs: Arguments, *, seed: int = 0) -> Arguments:
    """Return random inputs with the shapes and dtypes of given ones, the same at each call.

    Floating-point inputs are normal. Integers are below the size of the tables that the program indexes with them;
    others, which may mean anything, keep their values, in reverse order for odd seeds.
    """
    generator = Generator().manual_seed(seed)
    names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    limits = index_limits(program)
    leaves, structure = pytree.tree_flatten(inputs)
    known = [limits.get(name) for name in names] if len(names) == len(leaves) else [None] * len(leaves)
    found = [
        _random(leaf, limit, generator, seed) if isinstance(leaf, Tensor) else leaf
        for leaf, limit in zip(leaves, known, strict=True)
    ]
    result: Arguments = pytree.tree_unflatten(found, structure)
    return result


def index_limits(program: ExportedProgram) -> Mapping[str, int]:
    """Return the number of rows of the smallest table that is indexed by each integer input of a program."""
    nodes = {node.name: node for node in program.graph.nodes}
    names = [name for name in program.graph_signature.user_inputs if isinstance(name, str) and name in nodes]
    sizes = {name: list(_tables(nodes[name], set())) for name in names}
    return {name: min(found) for name, found in sizes.items() if found}


def constant_outputs(outputs: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Sequence[str]:
    """Return the names of the outputs that do not depend on the inputs, by outputs for two inputs."""
    return [name for name, value in outputs.items() if name in others and _is_same(value, others[name])]


def _is_same(before: Tensor, after: Tensor) -> bool:
    if before.shape != after.shape:
        return False
    exact = torch.complex128 if before.is_complex() else torch.float64
    old, new = before.to(exact), after.to(exact)
    scale = max(float(torch.linalg.vector_norm(old)), float(torch.linalg.vector_norm(new)))
    return float(torch.linalg.vector_norm(new - old)) <= _RESPONSE * scale


def _tables(node: Node, seen: set[Node]) -> Iterator[int]:
    """Yield the sizes of the tables that a value, or a value made of its elements, is an index of."""
    seen.add(node)
    for user in node.users:
        position = _TABLES.get(user.target)
        if position is not None and node is not user.args[0]:
            table = user.args[0]
            axis = user.args[1] if user.target is _ATEN.index_select.default else 0
            value = table.meta.get("val") if isinstance(table, Node) else None
            if value is not None and isinstance(axis, int) and isinstance(value.shape[axis], int):
                yield value.shape[axis]
        elif user not in seen and user.args[:1] == (node,) and _name_of(user) in _SELECTING:
            yield from _tables(user, seen)


def _name_of(node: Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return str(packet).removeprefix("aten.")


def _random(leaf: Tensor, limit: int | None, generator: Generator, seed: int) -> Tensor:
    if leaf.is_floating_point() or leaf.is_complex():
        return torch.randn(leaf.shape, generator=generator).to(leaf)
    if limit is not None and leaf.dtype is not torch.bool:
        return torch.randint(limit, leaf.shape, generator=generator).to(leaf)
    return _reversed(leaf) if seed % 2 else leaf


def _flipped(inputs: Arguments) -> Arguments:
    found: Arguments = pytree.tree_map_only(Tensor, _reversed, inputs)
    return found


def _reversed(tensor: Tensor) -> Tensor:
    return tensor.flip(tuple(range(tensor.dim())))


def _is_constant(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())
