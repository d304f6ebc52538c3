"""Names of tensors in files that differ from those in the network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from torch import Tensor

Tensors: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Conversion:
    """Tensors of a file that a network stores in another arrangement, such as experts in one tensor.

    Attributes:
        sources: Names of the tensors in the file.
        targets: Shapes of the tensors of the network, by name.
        convert: Computes the tensors of the network from those of the file.
        revert: Computes the tensors of the file from those of the network; None if that is impossible.
    """

    sources: Sequence[str]
    targets: Mapping[str, tuple[int, ...]]
    convert: Callable[[Tensors], Tensors]
    revert: Callable[[Tensors], Tensors] | None


@dataclass(frozen=True)
class Resolution:
    """The tensors of a file in terms of a network.

    Attributes:
        names: Names in the network of tensors that are stored as they are, by their names in the file.
        conversions: All other tensors that the network uses.
        ignored: Tensors that loading ignores, each with the reason.
    """

    names: Mapping[str, str]
    conversions: Sequence[Conversion] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)


class Naming(Protocol):
    """Rules by which the library of a network finds its tensors in files."""

    def resolve(self, shapes: Mapping[str, tuple[int, ...]]) -> Resolution:
        """Return the tensors of a file in terms of the network.

        A tensor that the network should have, but has not, is resolved to its own name.

        Args:
            shapes: Shapes of the tensors of the file, by name.
        """
        ...

    def may_lack(self, name: str) -> bool:
        """Return whether files may lack a tensor of the network."""
        ...
