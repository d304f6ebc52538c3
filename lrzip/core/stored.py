"""Stored structures: replacements of layers in a checkpoint, recognized by the names and shapes of tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from lrzip.core.kinds import ATTENTION, EMBEDDING, LINEAR, Kind, kind_of_shape
from lrzip.core.layers import TensorSpec, by_module
from lrzip.core.structure import BRANCHES, Chain, Select, Stage, Structure, Sum, bias_name, tensor_names


@dataclass(frozen=True)
class DenseLayer:
    """Known properties of a layer that a stored structure may replace.

    Attributes:
        kind: Kind of the layer.
        shape: Shape of its dense weight, if known.
        groups: Number of groups, if the shape is known.
    """

    kind: Kind
    shape: tuple[int, ...] | None = None
    groups: int = 1


@dataclass(frozen=True)
class Stored:
    """A structure in a checkpoint.

    Attributes:
        module: Path of the layer's module in the names of the tensors.
        structure: The structure.
        weights: Tensors of its stages and selections, in the order of `lrzip.core.structure.leaves`.
        bias: Bias of its last stage, if it has one.
        replaced: The layer as a single stage.
    """

    module: str
    structure: Structure
    weights: tuple[TensorSpec, ...]
    bias: TensorSpec | None
    replaced: Stage

    @property
    def dense_name(self) -> str:
        """Name of the weight that the structure replaces."""
        return self.replaced.kind.tensor_name(self.module, "weight")

    @property
    def dense_bias_name(self) -> str:
        """Name of the bias that the layer itself has."""
        return self.replaced.kind.tensor_name(self.module, "bias")


def find_structures(
    tensors: Mapping[str, TensorSpec], layers: Mapping[str, DenseLayer] | None = None
) -> Sequence[Stored]:
    """Return the structures stored among tensors.

    The stages of a chain at `x` are called `x.0.weight`, `x.1.weight`, …, the branches of a sum
    `x.branches.0.weight`, …, and the last stage may have a bias. Nothing else is stored below `x`, the shapes fit
    together, and the weights are smaller than their dense product.

    Args:
        tensors: All tensors of a checkpoint or network.
        layers: Layers of the architecture by module; only these are searched. None if the architecture is unknown:
            structures of linear layers and convolutions are then recognized, and a chain that begins with a depthwise
            stage is taken for the replacement of a layer with a single input channel.
    """
    modules = by_module(tensors)
    wanted = dict.fromkeys(modules, None) if layers is None else layers
    found = (_stored(module, modules[module], layer) for module, layer in wanted.items() if module in modules)
    return [stored for stored in found if stored]


class _Unfit(Exception):
    """The tensors below a module are not a structure."""


_Tree: TypeAlias = TensorSpec | tuple[str, list["_Tree"]]
"""A weight or an index, or `chain` or `sum` with its parts."""


def _stored(module: str, under: Mapping[str, TensorSpec], layer: DenseLayer | None) -> Stored | None:
    if all("." not in name for name in under):
        return None
    # A structure that does not fit the layer of the architecture is still returned, so that callers can report both.
    guesses = [layer] if layer is None or layer.shape is None else [layer, DenseLayer(layer.kind)]
    found = (_read(module, under, guess) for guess in guesses)
    return next((stored for stored in found if stored), None)


def _read(module: str, under: Mapping[str, TensorSpec], layer: DenseLayer | None) -> Stored | None:
    try:
        tree = _tree(under)
        reader = _Reader.of(tree, layer)
        structure = reader.read(tree)
    except _Unfit:
        return None
    bias = under.get(bias_name(structure))
    names = tensor_names(structure)
    fits = len(under) == len(names) + (bias is not None) and (bias is None or bias.shape == (reader.outputs,))
    weights = tuple(under[name] for name in names)
    if not fits or sum(spec.numel for spec in weights) >= prod(reader.replaced.shape):
        return None
    return Stored(module, structure, weights, bias, reader.replaced)


def _tree(names: Mapping[str, TensorSpec]) -> _Tree:
    """Return the expression that the names of tensors describe."""
    if "weight" in names and names.keys() <= {"weight", "bias"}:
        return names["weight"]
    if names.keys() == {"index"}:
        return names["index"]
    below = {name.removeprefix(f"{BRANCHES}."): spec for name, spec in names.items()}
    is_sum = all(name.startswith(f"{BRANCHES}.") for name in names)
    parts: dict[str, dict[str, TensorSpec]] = {}
    for name, spec in (below if is_sum else names).items():
        head, _, rest = name.partition(".")
        parts.setdefault(head, {})[rest] = spec
    if len(parts) < 2 or set(parts) != {str(index) for index in range(len(parts))}:
        raise _Unfit
    return "sum" if is_sum else "chain", [_tree(parts[str(index)]) for index in range(len(parts))]


def _weights_of(tree: _Tree) -> list[TensorSpec]:
    """Return the weights of the stages of an expression."""
    if isinstance(tree, TensorSpec):
        return [] if _is_index(tree) else [tree]
    return [spec for part in tree[1] for spec in _weights_of(part)]


def _is_index(spec: TensorSpec) -> bool:
    return spec.name.rpartition(".")[2] == "index"


class _Reader:
    """Turns an expression of tensors into a structure, following the number of channels from stage to stage."""

    def __init__(self, kind: Kind, inputs: int | None, groups: int, kernel: tuple[int, ...]) -> None:
        self._kind, self._inputs, self._groups, self._kernel = kind, inputs, groups, kernel
        self._shape: tuple[int, ...] | None = None
        self.outputs = 0
        self._first_inputs: int | None = None

    @classmethod
    def of(cls, tree: _Tree, layer: DenseLayer | None) -> "_Reader":
        """Return a reader of an expression for a layer."""
        weights = _weights_of(tree)
        shapes = [spec.shape for spec in weights]
        if not weights or len({(len(spec.shape), spec.dtype) for spec in weights}) > 1:
            raise _Unfit
        kind = layer.kind if layer else kind_of_shape(shapes[0])
        if kind is None or len(shapes[0]) != 2 + kind.spatial or not all(map(prod, shapes)):
            raise _Unfit
        kernel = tuple(max(sizes) for sizes in zip(*(kind.kernel(shape) for shape in shapes), strict=True))
        if layer is None or layer.shape is None:
            return cls(kind, None, _groups_of(tree, kind), kernel)
        dense = Stage(kind, layer.shape, layer.groups)
        reader = cls(kind, dense.inputs, layer.groups, kernel)
        reader._shape = layer.shape
        return reader

    @property
    def replaced(self) -> Stage:
        """The layer as a single stage; available after `read`."""
        inputs = (self._inputs or 0) // self._groups if self._inputs is not None else self._first_inputs
        shape = self._kind.shape(self.outputs, inputs or 0, self._kernel)
        return Stage(self._kind, shape, self._groups, (True,) * self._kind.spatial)

    def read(self, tree: _Tree) -> Structure:
        """Return the structure after checking that its shapes fit together and fit the layer."""
        structure, self.outputs = self._read(tree, self._inputs, (True,) * self._kind.spatial)
        if self._shape not in (None, self.replaced.shape):
            raise _Unfit
        return structure

    def _read(self, tree: _Tree, channels: int | None, axes: tuple[bool, ...]) -> tuple[Structure, int]:
        """Return a structure and its number of outputs, given its number of inputs and the axes that it strides."""
        if isinstance(tree, TensorSpec):
            return self._select(tree, channels) if _is_index(tree) else self._stage(tree, channels, axes)
        name, parts = tree
        if name == "sum":
            branches = [self._read(part, channels, axes) for part in parts]
            if len({outputs for _, outputs in branches}) > 1:
                raise _Unfit
            return Sum(tuple(branch for branch, _ in branches)), branches[0][1]
        carriers = [self._carrier(parts, axis) for axis in range(len(axes))]
        read: list[Structure] = []
        for index, part in enumerate(parts):
            own = tuple(takes and carriers[axis] == index for axis, takes in enumerate(axes))
            structure, channels = self._read(part, channels, own)
            read.append(structure)
        assert channels is not None
        return Chain(tuple(read)), channels

    def _carrier(self, parts: Sequence[_Tree], axis: int) -> int:
        """Return the index of the part that strides along an axis.

        It is the part with a kernel along the axis, or else the first one with any kernel. Without kernels, it is the
        first part, or the last one if the weight is stored with inputs first.
        """
        kernels = [[self._kind.kernel(spec.shape) for spec in _weights_of(part)] for part in parts]
        along = [index for index, shapes in enumerate(kernels) if any(shape[axis] > 1 for shape in shapes)]
        if len(along) > 1:
            raise _Unfit
        strided = [index for index, shapes in enumerate(kernels) if any(prod(shape) > 1 for shape in shapes)]
        last = len(parts) - 1 if self._kind.inputs_first else 0
        return (along or strided or [last])[0]

    def _select(self, spec: TensorSpec, channels: int | None) -> tuple[Structure, int]:
        if len(spec.shape) != 1 or channels is None or spec.shape[0] > channels:
            raise _Unfit
        return Select(spec.shape[0]), spec.shape[0]

    def _stage(self, spec: TensorSpec, channels: int | None, axes: tuple[bool, ...]) -> tuple[Structure, int]:
        is_first = self._first_inputs is None and channels == self._inputs
        kind = self._stage_kind(axes, is_first=is_first)
        outputs, inputs = kind.channels(spec.shape)
        given = inputs * self._groups if channels is None else channels
        groups = given // inputs
        if groups * inputs != given or outputs % groups or groups % self._groups:
            raise _Unfit
        if groups > 1 and not self._takes_groups(kind):
            raise _Unfit
        if is_first:
            self._first_inputs = inputs
        return Stage(kind, spec.shape, groups, axes), outputs

    def _stage_kind(self, axes: tuple[bool, ...], *, is_first: bool) -> Kind:
        if self._kind is EMBEDDING and is_first:
            return EMBEDDING
        return self._kind if self._kind.spatial and any(axes) else self._kind.pointwise

    def _takes_groups(self, kind: Kind) -> bool:
        return self._kind is ATTENTION or kind.is_plain_convolution


def _groups_of(tree: _Tree, kind: Kind) -> int:
    """Infer the groups of a layer from the shapes of two stages: the second takes the channels of one group."""
    weights = _weights_of(tree)
    if kind.groups > 1 or len(weights) != 2 or kind.inputs_first or kind is LINEAR:
        return kind.groups
    (outputs, *_), (_, inputs, *kernel) = (spec.shape for spec in weights)
    return outputs // inputs if prod(kernel) == 1 and outputs % inputs == 0 else 1
