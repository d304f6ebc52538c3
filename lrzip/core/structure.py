"""Structures: expressions of ordinary operations that replace a layer.

A decomposition returns a `Structure`, which five interpreters translate: live modules (`networks.surgery`), ONNX
nodes (`formats.onnx.nodes`), nodes of exported programs (`networks.programs.nodes`), multiply-accumulates
(`core.costs`) and the dense product (`core.merge`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from lrzip.core.kinds import Kind

BRANCHES = "branches"
"""Name under which the module of a `Sum` holds its branches."""


@dataclass(frozen=True)
class Stage:
    """One linear layer, embedding or convolution.

    Attributes:
        kind: Kind of the layer.
        shape: Shape of the weight, in the layout of the kind.
        groups: Number of groups of channels.
        axes: For each spatial axis, whether the stage inherits the replaced layer's stride, padding and dilation along
            it; along the others, its kernel has size 1.
    """

    kind: Kind
    shape: tuple[int, ...]
    groups: int = 1
    axes: tuple[bool, ...] = ()

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return self.kind.channels(self.shape)[0]

    @property
    def inputs(self) -> int:
        """Number of input channels, over all groups; the number of rows of an embedding."""
        return self.kind.channels(self.shape)[1] * self.groups


@dataclass(frozen=True)
class Chain:
    """Structures that are applied one after the other. Its module is an `nn.Sequential`."""

    parts: tuple["Structure", ...]


@dataclass(frozen=True)
class Sum:
    """Structures that are applied to the same input, and whose outputs are added."""

    branches: tuple["Structure", ...]


@dataclass(frozen=True)
class Select:
    """A selection of input channels by a stored tensor of indices, `index` (count,) int64.

    Attributes:
        count: Number of channels that are kept.
    """

    count: int


@dataclass(frozen=True)
class Reshape:
    """A rearrangement of the features of a linear layer's input, as tensor-train matrices need it.

    The last `axes` axes of the input are viewed as `view`, permuted by `order`, and viewed as `shape`.

    Attributes:
        axes: Number of last axes of the input that are rearranged.
        view: Sizes of the view, whose product is that of the rearranged axes.
        order: Permutation of the axes of the view.
        shape: Sizes of the result; stages act on the last one.
    """

    axes: int
    view: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]


Structure: TypeAlias = Stage | Chain | Sum | Select | Reshape
Leaf: TypeAlias = Stage | Select


def leaves(structure: Structure, path: str = "") -> Iterator[tuple[str, Leaf]]:
    """Yield the stages and selections of a structure in the order of their tensors, with the paths of their modules."""
    if isinstance(structure, Stage | Select):
        yield path, structure
    elif isinstance(structure, Chain):
        for index, part in enumerate(structure.parts):
            yield from leaves(part, join(path, str(index)))
    elif isinstance(structure, Sum):
        for index, branch in enumerate(structure.branches):
            yield from leaves(branch, join(path, f"{BRANCHES}.{index}"))


def stages(structure: Structure) -> list[Stage]:
    """Return the stages of a structure in the order of their weights."""
    return [leaf for _, leaf in leaves(structure) if isinstance(leaf, Stage)]


def parameters(structure: Structure) -> int:
    """Return the number of elements of the weights of a structure, without biases and indices."""
    return sum(prod(stage.shape) for stage in stages(structure))


def tensor_names(structure: Structure) -> list[str]:
    """Return the names of the tensors of a structure, without a bias, below the path of its module."""
    return [join(path, "weight" if isinstance(leaf, Stage) else "index") for path, leaf in leaves(structure)]


def tensor_shapes(structure: Structure) -> list[tuple[int, ...]]:
    """Return the shapes of the tensors of a structure, in the order of `tensor_names`."""
    return [leaf.shape if isinstance(leaf, Stage) else (leaf.count,) for _, leaf in leaves(structure)]


def biased_part(structure: Structure, path: str = "") -> tuple[str, Stage | Reshape]:
    """Return the path and the part that adds the layer's bias: the last part, in a sum that of the last branch."""
    if isinstance(structure, Chain):
        return biased_part(structure.parts[-1], join(path, str(len(structure.parts) - 1)))
    if isinstance(structure, Sum):
        return biased_part(structure.branches[-1], join(path, f"{BRANCHES}.{len(structure.branches) - 1}"))
    if isinstance(structure, Select):
        raise TypeError("a structure does not end with a selection of channels")
    return path, structure


def bias_name(structure: Structure) -> str:
    """Return the name of the bias of a structure."""
    return join(biased_part(structure)[0], "bias")


def parents_of_parts(names: Iterable[str]) -> set[str]:
    """Return the module paths that an index or `branches` follows in names of tensors, as in structures."""
    found: set[str] = set()
    for name in names:
        parts = name.split(".")
        found.update(".".join(parts[:at]) for at, part in enumerate(parts) if part.isdigit() or part == BRANCHES)
    return found


def join(path: str, name: str) -> str:
    """Return a dotted path below another one, which may be empty."""
    return f"{path}.{name}" if path else name
