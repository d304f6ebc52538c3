"""Dense weights with many subnormal numbers, with which CPUs compute many times more slowly."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from lrzip.core.errors import LrzipError
from lrzip.formats.protocols import Source
from lrzip.linalg.blocks.precision import compute_dtype
from lrzip.linalg.blocks.subnormals import subnormals
from lrzip.networks.weights import is_parameter, not_a_weight

# Share of subnormal numbers in a weight from which on they are reported: a few dead channels have more.
_MANY = 0.01
# Elements that are examined at a time.
_PIECE = 1 << 22


@dataclass(frozen=True)
class SubnormalWeight:
    """A weight with many subnormal numbers.

    Attributes:
        tensor: Name of the tensor.
        count: How many of its numbers are subnormal.
        numel: How many numbers it has.
    """

    tensor: str
    count: int
    numel: int

    def to_dict(self) -> dict[str, Any]:
        """Return the weight as it appears in JSON documents."""
        return {"tensor": self.tensor, "count": self.count, "parameters": self.numel}

    def __str__(self) -> str:
        return f"`{self.tensor}` has {self.count:,} ({100 * self.count / self.numel:.0f} %)"


def find_subnormal_weights(source: Source) -> Sequence[SubnormalWeight]:
    """Return the weights of which at least 1 % are subnormal, the fullest ones first; each is read once.

    Numbers of float16 and bfloat16 count as the numbers of float32 that CPUs compute with. Tensors that cannot be read
    are left out; they are an error where they are needed.
    """
    found: list[SubnormalWeight] = []
    for spec in source.tensors().values():
        if not is_parameter(spec) or not_a_weight(spec) is not None:
            continue
        with suppress(LrzipError):
            found.append(SubnormalWeight(spec.name, _count(source.read(spec.name)), spec.numel))
    return sorted((each for each in found if each.count >= _MANY * each.numel), key=lambda each: -each.count)


def subnormal_note(found: Sequence[SubnormalWeight]) -> str | None:
    """Return a sentence about weights with many subnormal numbers; None if there are none."""
    if not found:
        return None
    others = f", and {len(found) - 1} more tensors have many" if len(found) > 1 else ""
    return (
        f"Subnormal numbers: {found[0]}{others}. CPUs compute with them up to ten times more slowly. "
        "Set those of dense weights to 0; the factors that lrzip writes have none."
    )


def _count(weight: torch.Tensor) -> int:
    if weight.is_meta or weight.layout is not torch.strided:
        return 0  # no numbers, or not the weight of a layer
    dtype = compute_dtype(weight.dtype)
    return sum(int(subnormals(piece.to(dtype)).sum()) for piece in torch.split(weight.flatten(), _PIECE))
