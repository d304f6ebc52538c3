"""Widths before and after a weight, from the sizes of the modules beside it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lrzip.core.layers import TensorSpec

_NUMBERED = re.compile(r"(\D+)(\d{1,4})")


@dataclass(frozen=True)
class Neighbor:
    """The weight of a module beside another one.

    Attributes:
        weight: The weight; a vector is that of a norm.
        bias: The bias of the same module, if any.
    """

    weight: TensorSpec
    bias: TensorSpec | None

    @property
    def width(self) -> int | None:
        """Number of channels that leave the module, or None if its kind is not certain."""
        if len(self.weight.shape) == 1:
            return self.weight.shape[0]
        return self.bias.shape[0] if self.bias and len(self.bias.shape) == 1 else None


class Neighbors:
    """The modules of a file in the order in which they probably run.

    Numbers in names order modules, as in an `nn.Sequential`. Otherwise the order of the file counts, unless that is
    alphabetical.
    """

    def __init__(self, tensors: Mapping[str, TensorSpec]) -> None:
        self._tensors = tensors

    def numbered(self, module: str, step: int) -> Neighbor | None:
        """Return the module whose name has the next number (`step` 1) or the one before (`step` -1), if there is one.

        Numbers that are only indices, as in an `nn.Sequential`, may have gaps: activations have no weights.
        """
        parent, _, own = module.rpartition(".")
        stem = own.rstrip("0123456789")
        siblings = self._numbered.get((parent, stem), ())
        position = siblings.index(own) + step if own in siblings else -1
        if not 0 <= position < len(siblings):
            return None
        return self._neighbor(f"{parent}.{siblings[position]}".removeprefix("."))

    def norm_after(self, module: str) -> int | None:
        """Return the width of the norm that follows a module in its own block, or None."""
        return _norm(self._beside(module, 1))

    def norm_before_in_block(self, module: str) -> int | None:
        """Return the width of the norm before a module in its own block, or None."""
        return _norm(self._beside(module, -1))

    def norm_before(self, module: str) -> int | None:
        """Return the width of the norm before a module, in its own block or at the end of the one before, or None."""
        position = self._positions.get(module, 0) - 1
        if self._is_sorted:
            return self.norm_before_in_block(module) or self._norm_of_block_before(module)
        if self._beside(module, -1) or position < 0:
            return self.norm_before_in_block(module)
        return _norm(self._neighbor(self._modules[position]))

    def _norm_of_block_before(self, module: str) -> int | None:
        """Return the width of the only norm in the block with the number before, such as `conv1` before `conv2`."""
        numbered = _numbered_block(module)
        if numbered is None:
            return None
        head, stem, number = numbered
        widths = self._norms.get((head, stem, number - 1), set())
        return next(iter(widths)) if len(widths) == 1 else None

    @cached_property
    def _norms(self) -> Mapping[tuple[str, str, int], set[int]]:
        """Widths of the norms in each numbered block."""
        found: dict[tuple[str, str, int], set[int]] = {}
        for module in self._modules:
            numbered, width = _numbered_block(module), _norm(self._neighbor(module))
            if numbered and width:
                found.setdefault(numbered, set()).add(width)
        return found

    def _beside(self, module: str, step: int) -> Neighbor | None:
        """Return the module beside another one in the order of indices, or else of an unsorted file."""
        parent, _, own = module.rpartition(".")
        if own.isdecimal():
            return self.numbered(module, step)
        position = self._positions.get(module, -1) + step
        if self._is_sorted or not 0 <= position < len(self._modules):
            return None
        other = self._modules[position]
        return self._neighbor(other) if other.rpartition(".")[0] == parent else None

    def _neighbor(self, module: str) -> Neighbor:
        return Neighbor(self._tensors[f"{module}.weight"], self._tensors.get(f"{module}.bias"))

    @cached_property
    def _modules(self) -> Sequence[str]:
        """Modules with a weight, in the order of the file."""
        return [
            name.removesuffix(".weight")
            for name, spec in self._tensors.items()
            if name.endswith(".weight") and spec.shape
        ]

    @cached_property
    def _positions(self) -> Mapping[str, int]:
        return {name: position for position, name in enumerate(self._modules)}

    @cached_property
    def _numbered(self) -> Mapping[tuple[str, str], Sequence[str]]:
        """Last names of the modules with a weight in the order of their numbers, by path and rest of the name."""
        found: dict[tuple[str, str], list[str]] = {}
        for name in self._modules:
            parent, _, own = name.rpartition(".")
            found.setdefault((parent, own.rstrip("0123456789")), []).append(own)
        return {(parent, stem): sorted(names, key=_by_number) for (parent, stem), names in found.items()}

    @cached_property
    def _is_sorted(self) -> bool:
        """Whether names of each dtype are in alphabetical order, as the safetensors library writes them."""
        by_dtype: dict[str, list[str]] = {}
        for name, spec in self._tensors.items():
            by_dtype.setdefault(spec.dtype, []).append(name)
        return all(names == sorted(names) for names in by_dtype.values())


def _numbered_block(module: str) -> tuple[str, str, int] | None:
    """Return the path above the block that holds a module, and the name and the first number of the block."""
    head, _, block = module.rpartition(".")[0].rpartition(".")
    found = _NUMBERED.match(block)
    return (head, found[1], int(found[2])) if found else None


def _norm(neighbor: Neighbor | None) -> int | None:
    return neighbor.weight.shape[0] if neighbor and len(neighbor.weight.shape) == 1 else None


def _by_number(name: str) -> tuple[int, str]:
    """Return a key by which names that differ only in their final number are sorted by that number."""
    return len(name), name
