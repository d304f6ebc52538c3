"""Second moments of what layers are applied to, which say what of a weight matters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lrzip.core.activations import Inputs
from lrzip.linalg.blocks.gram import gram
from lrzip.linalg.whitening import DAMPING

# Bytes and rows of the pieces in which inputs are unfolded: large enough for full speed, small enough that sums of so
# many products in float32 lose nothing.
PIECE = 1 << 25
_ROWS = 1 << 13
_ITEMSIZE = 4


@dataclass(frozen=True)
class MeasuredChanges:
    """Measured changes of a network's outputs when one of its layers alone is replaced, at several ranks.

    Attributes:
        ranks: Ascending, below full rank.
        changes: For each rank, the mean squared change of the outputs over samples and elements.
    """

    ranks: tuple[int, ...]
    changes: tuple[float, ...]


@dataclass(frozen=True)
class Moments:
    """Moments of the inputs of a layer, for each group of its weight.

    Attributes:
        second: E[x xᵀ], (groups, n, n) float64 for n columns of the unfolded weight, or for an embedding its diagonal
            (groups, n), the shares of the indices.
        first: E[x], (groups, n) float64.
        count: Positions that were averaged over.
        fisher: Fisher sensitivity of the layer's outputs, see `lrzip.calibration.fisher`; None if unknown.
        measured: Measured changes of the network's outputs by rank; None if not measured.
    """

    second: Tensor
    first: Tensor
    count: int
    fisher: float | None = None
    measured: MeasuredChanges | None = None

    @property
    def damping(self) -> float:
        """What is to be added in all directions, as a share of the mean moment: the more, the fewer positions.

        Of n columns seen in p positions, estimates of moments are off by about the share n / p of their mean.
        """
        return DAMPING + self.first.shape[1] / max(self.count, 1)

    @property
    def centered(self) -> "Moments":
        """The same of x − E[x], for what will get a bias that makes up for the mean; indices have no mean."""
        if self.second.dim() == self.first.dim():
            return self
        outer = self.first[:, :, None] * self.first[:, None, :]
        return replace(self, second=self.second - outer, first=torch.zeros_like(self.first))


@dataclass(frozen=True)
class Targets:
    """What a layer should put out, against what it is applied to, for each group.

    Attributes:
        cross: E[t xᵀ], (groups, m, n) float64 for outputs t.
        first: E[t], (groups, m) float64.
    """

    cross: Tensor
    first: Tensor

    def less(self, constants: Tensor, inputs: Moments) -> "Targets":
        """Return the same of t − c, for constants (groups, m)."""
        outer = constants[:, :, None] * inputs.first[:, None, :]
        return Targets(self.cross - outer, self.first - constants)


class Sums:
    """Adds up moments: products in float32 of pieces of bounded size, their sums in float64.

    Args:
        columns: Of the part of a group in the unfolded weight.
        groups: Of the weight.
        diagonal: Whether inputs are indices.
        outputs: Channels of a group that targets come with; 0 without targets.
    """

    def __init__(self, columns: int, groups: int, *, diagonal: bool = False, outputs: int = 0) -> None:
        self._second = torch.zeros((groups, columns) if diagonal else (groups, columns, columns), dtype=torch.float64)
        self._first = torch.zeros(groups, columns, dtype=torch.float64)
        self._cross = torch.zeros(groups, outputs, columns, dtype=torch.float64)
        self._target = torch.zeros(groups, outputs, dtype=torch.float64)
        self._count = 0
        self._calls = 0

    def add(self, inputs: Inputs, targets: tuple[Tensor, ...] = (), *, most: int | None = None) -> None:
        """Take the inputs of one call, and what each group should put out, at about so many positions at most."""
        if self._second.dim() == self._first.dim():
            for group, part in enumerate(inputs.parts):
                self._second[group] += torch.bincount(part.flatten().cpu(), minlength=self._second.shape[1])
            self._first = self._second
            self._count += inputs.parts[0].numel()
            return
        groups = len(self._second)
        self._calls += 1
        thinned = inputs if most is None else inputs.thinned(most, self._calls)
        for piece in thinned.rows(piece_size(self._second.shape[-1]), targets):
            products: dict[int, tuple[Tensor, Tensor]] = {}  # groups may see the same
            for group, rows in enumerate(piece[:groups]):
                if rows.data_ptr() not in products:
                    products[rows.data_ptr()] = gram(rows, dtype=rows.dtype), rows.sum(0, dtype=torch.float64)
                second, first = products[rows.data_ptr()]
                self._second[group] += second.cpu()
                self._first[group] += first.cpu()
            for group, (rows, goal) in enumerate(zip(piece, piece[groups:], strict=False)):
                self._cross[group] += (goal.mT @ rows).cpu()
                self._target[group] += goal.sum(0, dtype=torch.float64).cpu()
            self._count += len(piece[0])

    def moments(self) -> Moments:
        """Return the means of the inputs so far."""
        return Moments(self._second / max(self._count, 1), self._first / max(self._count, 1), self._count)

    def targets(self) -> Targets:
        """Return the means with the targets so far."""
        return Targets(self._cross / max(self._count, 1), self._target / max(self._count, 1))


def piece_size(columns: int) -> int:
    """Return the bytes of the pieces in which inputs of so many columns are looked at."""
    return min(PIECE, _ROWS * _ITEMSIZE * columns)


Statistics = Mapping[str, Moments]
"""Moments by layer name."""


Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Of one call of a network: positional and named."""


Observe = Callable[[str, Inputs], None]
"""Takes what a layer of some name was applied to."""
