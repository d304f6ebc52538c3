"""First and second moments of the inputs of layers, and of their products with target outputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lrzip.core.activations import Inputs
from lrzip.linalg.blocks.gram import gram
from lrzip.linalg.whitening import DAMPING

# Bytes and rows of the pieces in which inputs are unfolded: large enough for full speed, small enough for float32 sums
# over their rows to be precise.
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
        second: E[x xᵀ], (groups, n, n) float64, where n is the number of columns of the unfolded weight. For an
            embedding only its diagonal (groups, n), the relative frequencies of indices.
        first: E[x], (groups, n) float64.
        count: Number of inputs averaged over, one per sample and spatial position.
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
        """Damping of second moments, as a share of their mean; larger for fewer inputs.

        The error of moments estimated for n columns from p inputs is about n / p of their mean.
        """
        return DAMPING + self.first.shape[1] / max(self.count, 1)

    @property
    def centered(self) -> "Moments":
        """Moments of x − E[x], for layers whose bias absorbs the mean; those of indices are returned unchanged."""
        if self.second.dim() == self.first.dim():
            return self
        outer = self.first[:, :, None] * self.first[:, None, :]
        return replace(self, second=self.second - outer, first=torch.zeros_like(self.first))


@dataclass(frozen=True)
class Targets:
    """Moments of target outputs t with the inputs x of a layer, for each group of its weight.

    Attributes:
        cross: E[t xᵀ], (groups, m, n) float64.
        first: E[t], (groups, m) float64.
    """

    cross: Tensor
    first: Tensor

    def minus(self, constants: Tensor, inputs: Moments) -> "Targets":
        """Return the moments of t − c, for constants c (groups, m)."""
        outer = constants[:, :, None] * inputs.first[:, None, :]
        return Targets(self.cross - outer, self.first - constants)


class Sums:
    """Sums of moments over calls of a layer: float32 products of pieces of bounded size, summed in float64.

    Args:
        columns: Number of columns of the unfolded weight of one group.
        groups: Number of groups of the weight.
        diagonal: Whether inputs are indices.
        outputs: Output channels of one group that targets are given for; 0 without targets.
    """

    def __init__(self, columns: int, groups: int, *, diagonal: bool = False, outputs: int = 0) -> None:
        self._second = torch.zeros((groups, columns) if diagonal else (groups, columns, columns), dtype=torch.float64)
        self._first = torch.zeros(groups, columns, dtype=torch.float64)
        self._cross = torch.zeros(groups, outputs, columns, dtype=torch.float64)
        self._target = torch.zeros(groups, outputs, dtype=torch.float64)
        self._count = 0
        self._calls = 0

    def add(self, inputs: Inputs, targets: tuple[Tensor, ...] = (), *, most: int | None = None) -> None:
        """Add the inputs of one call.

        Args:
            inputs: Inputs of the layer.
            targets: Target outputs of each group, shaped like the outputs; empty without targets.
            most: Approximate maximum number of inputs to use, evenly subsampled; None uses all.
        """
        if self._second.dim() == self._first.dim():
            for group, part in enumerate(inputs.parts):
                self._second[group] += torch.bincount(part.flatten().cpu(), minlength=self._second.shape[1])
            self._first = self._second
            self._count += inputs.parts[0].numel()
            return
        groups = len(self._second)
        self._calls += 1
        sampled = inputs if most is None else inputs.subsampled(most, self._calls)
        for piece in sampled.rows(piece_size(self._second.shape[-1]), targets):
            products: dict[int, tuple[Tensor, Tensor]] = {}  # groups may share their inputs
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
        """Return the moments of all inputs added so far."""
        return Moments(self._second / max(self._count, 1), self._first / max(self._count, 1), self._count)

    def targets(self) -> Targets:
        """Return the moments of all targets added so far."""
        return Targets(self._cross / max(self._count, 1), self._target / max(self._count, 1))


def piece_size(columns: int) -> int:
    """Return the size in bytes of the pieces in which inputs with this number of columns are unfolded."""
    return min(PIECE, _ROWS * _ITEMSIZE * columns)


Statistics = Mapping[str, Moments]
"""Moments by layer name."""


Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call of a network."""


Observe = Callable[[str, Inputs], None]
"""Callback that receives the name of a layer and the inputs of one call of it."""
