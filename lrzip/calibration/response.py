"""The non-linear form of asymmetric calibration (Zhang et al. 2015, section 3.2): fit what comes out of the ReLU.

‖r(t) − r(Wx + c)‖² with r = ReLU is made small by turns: with an auxiliary z in the place of Wx + c, and λ‖z − (Wx +
c)‖² added, each z is found by itself, and then W and c as for any target. What is missed where both sides are negative
costs nothing, so that a rank is left for the rest.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lrzip.calibration.regression import Affine
from lrzip.core.moments import Targets

# λ of each turn. The paper too goes from 0.01 to 1; for images that were not calibrated on, more turns are no better.
_PENALTIES = (0.01, 0.1, 1.0)
Pieces = Callable[[], Iterable[tuple[Tensor, ...]]]
"""Yields all positions in pieces: for each group a matrix (positions, columns) of inputs, then one (positions, outputs)
of what should come before the ReLU, and where something is added to the outputs, one of that."""


def nearest(goal: Tensor, output: Tensor, penalty: float) -> Tensor:
    """Return the z with the least (r(goal) − r(z))² + λ(z − output)², element by element: one that r leaves, or not.

    Args:
        goal: Of any shape.
        output: Of the same shape.
        penalty: λ, positive.
    """
    wanted = goal.relu()
    above = ((wanted + penalty * output) / (1 + penalty)).clamp(min=0)
    below = output.clamp(max=0)
    loss_above = (wanted - above).square() + penalty * (above - output).square()
    loss_below = wanted.square() + penalty * (below - output).square()
    return torch.where(loss_above < loss_below, above, below)


def refine(start: Affine, solve: Callable[[Targets], Affine], pieces: Pieces) -> Affine:
    """Return what misses the least of the responses, of the start and what turns of `solve` make of it.

    Args:
        start: Where to begin.
        solve: Returns what is nearest to targets, of those that may be taken.
        pieces: What it is applied to, and what should come of it.
    """
    best, least, current = start, float("inf"), start
    for penalty in _PENALTIES:
        missed, targets = _look(current, pieces, penalty)
        if missed < least:
            best, least = current, missed
        current = solve(targets)
    return current if _look(current, pieces, 1.0)[0] < least else best


def _look(map_: Affine, pieces: Pieces, penalty: float) -> tuple[float, Targets]:
    """Return E‖r(t) − r(Wx + c)‖², and the moments of the targets z."""
    groups, outputs, columns = map_.matrices.shape
    cross = torch.zeros(groups, outputs, columns, dtype=torch.float64)
    first = torch.zeros(groups, outputs, dtype=torch.float64)
    missed, count = 0.0, 0
    for piece in pieces():
        inputs, goals, others = piece[:groups], piece[groups : 2 * groups], piece[2 * groups :]
        for group, (rows, goal) in enumerate(zip(inputs, goals, strict=True)):
            constant = map_.constants[group].to(rows)
            added = constant + others[group] if others else constant
            output = torch.addmm(added, rows, map_.matrices[group].to(rows).mT)
            missed += float((goal.relu() - output.relu()).square().sum(dtype=torch.float64))
            z = nearest(goal, output, penalty)
            z = z - others[group] if others else z
            cross[group] += (z.mT @ rows).cpu()
            first[group] += z.sum(0, dtype=torch.float64).cpu()
        count += len(inputs[0])
    return missed / max(count, 1), Targets(cross / max(count, 1), first / max(count, 1))
