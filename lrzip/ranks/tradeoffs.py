"""The trade-offs that a rule with a unit chooses among: cost and loss of each layer, dense or at any of its ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lrzip.ranks.candidate import Candidate, Pick
from lrzip.ranks.context import Context, Meter
from lrzip.ranks.knapsack import Options

Ranks: TypeAlias = NDArray[np.int64]
"""Combinations of ranks, shape (unfoldings, n)."""

_DENSE = 0
"""Label of the option to keep a layer dense."""


@dataclass(frozen=True)
class Tradeoffs:
    """The options of all layers.

    Attributes:
        candidates: The layers, ordered by name: floating-point sums over layers depend on their order.
        items: Options of each layer.
        fixed: Amount that everything else uses.
    """

    candidates: Sequence[Candidate]
    items: list[Options]
    fixed: int

    @classmethod
    def of(cls, candidates: Sequence[Candidate], meter: Meter, context: Context) -> "Tradeoffs":
        """Return the options of candidates.

        Args:
            candidates: The layers.
            meter: Counts the costs.
            context: Objective, multiple of the ranks, and amount that other rules save.
        """
        fixed = meter.dense - context.saved - sum(meter.cost(candidate.layer, None) for candidate in candidates)
        ordered = sorted(candidates, key=lambda candidate: candidate.group.name)
        return cls(ordered, [_options(candidate, meter, context) for candidate in ordered], fixed)

    def picks(self, labels: Sequence[int]) -> dict[str, Pick]:
        """Return the picks that the labels of one option per layer stand for; dense layers have none."""
        pairs = zip(self.candidates, labels, strict=True)
        return {item.group.name: _pick_of(item, label) for item, label in pairs if label != _DENSE}


def _options(candidate: Candidate, meter: Meter, context: Context) -> Options:
    """Return the options of a layer: combinations of ranks of all its decompositions that save, and the dense layer.

    Combinations are labeled by their index among all of them, from 1 on.
    """
    dense = meter.cost(candidate.layer, None)
    first, found = 1, [(np.array([dense]), np.array([0.0]), np.array([_DENSE]))]
    for each in candidate.alternatives:
        found.append(_savings(each, meter, context, first))
        first += prod(each.max_ranks)
    costs, losses, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Options.of(costs.astype(np.int64), losses, labels.astype(np.int64))


def _savings(
    candidate: Candidate, meter: Meter, context: Context, first: int
) -> tuple[Ranks, NDArray[np.float64], Ranks]:
    """Return costs, losses and labels of the combinations of ranks of one decomposition that save.

    Ranks are multiples of `round_to` or the largest rank, unless no such combination saves.

    Args:
        candidate: The layer with the decomposition.
        meter: Counts the costs.
        context: Multiple of the ranks, and objective.
        first: Label of the first combination.
    """
    round_to = context.round_to or candidate.layer.round_to
    ranks = 1 + np.indices(candidate.max_ranks).reshape(len(candidate.max_ranks), -1)
    largest = np.array(candidate.max_ranks)[:, None]
    smaller = _multilinear(candidate.parameters, ranks) < candidate.layer.weight.numel
    rounded = smaller & ((ranks % round_to == 0) | (ranks == largest)).all(0)
    indices = np.flatnonzero(rounded if rounded.any() else smaller)

    def count(chosen: tuple[int, ...]) -> int:
        return meter.cost(candidate.layer, Pick(candidate.decomposition, chosen))

    costs = (_multilinear if meter.affine else _one_by_one)(count, ranks[:, indices])
    losses = context.objective.joint(candidate).ravel()[indices]
    saves = costs < meter.cost(candidate.layer, None)
    return costs[saves], losses[saves], indices[saves] + first


def _pick_of(candidate: Candidate, label: int) -> Pick:
    """Return the decomposition and the combination of ranks with a label."""
    index = label - 1
    for each in candidate.alternatives:
        count = prod(each.max_ranks)
        if index < count:
            return Pick(each.decomposition, tuple(1 + int(at) for at in np.unravel_index(index, each.max_ranks)))
        index -= count
    raise ValueError(f"no combination of ranks has the label {label}")


def _one_by_one(count: Callable[[tuple[int, ...]], int], ranks: Ranks) -> Ranks:
    """Return the counts of combinations of ranks, shape (n,)."""
    return np.array([count(tuple(map(int, column))) for column in ranks.T], dtype=np.int64)


def _multilinear(count: Callable[[tuple[int, ...]], int], ranks: Ranks) -> Ranks:
    """Return the counts of combinations of ranks, shape (n,), where the count is affine in each rank.

    The counts at ranks of 1 and 2 determine all others.
    """
    counts = np.zeros(ranks.shape[1], dtype=np.int64)
    for corner in product((1, 2), repeat=len(ranks)):
        weights = [2 - rank if at == 1 else rank - 1 for at, rank in zip(corner, ranks, strict=True)]
        counts += count(corner) * np.prod(weights, axis=0)
    return counts
