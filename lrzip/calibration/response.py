"""The non-linear form of asymmetric calibration (Zhang et al. 2015, section 3.2): fit the output of the ReLU.

‖r(t) − r(Wx + c)‖² with r = ReLU is minimized by alternation: an auxiliary z takes the place of Wx + c,
λ‖z − (Wx + c)‖² is added, and z, element by element, and (W, c), by regression, are solved for in turn. Errors where
both arguments are negative cost nothing, so the rank is available for the others.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lrzip.calibration.regression import Affine
from lrzip.core.moments import Targets

# λ of each iteration, from 0.01 to 1 as in the paper; more iterations are no better on images outside the calibration.
_PENALTIES = (0.01, 0.1, 1.0)
Pieces = Callable[[], Iterable[tuple[Tensor, ...]]]
"""Yields all spatial positions in pieces: a matrix (positions, columns) of inputs for each group, then one (positions,
outputs) of targets before the ReLU for each group, and, if another branch is added to the outputs, one of that branch
for each group."""


def nearest(goal: Tensor, output: Tensor, penalty: float) -> Tensor:
    """Return the minimizer z of (r(goal) − r(z))² + λ(z − output)², element by element.

    Args:
        goal: Targets before the ReLU, of any shape.
        output: Outputs before the ReLU, of the same shape.
        penalty: λ, positive.
    """
    wanted = goal.relu()
    above = ((wanted + penalty * output) / (1 + penalty)).clamp(min=0)
    below = output.clamp(max=0)
    loss_above = (wanted - above).square() + penalty * (above - output).square()
    loss_below = wanted.square() + penalty * (below - output).square()
    return torch.where(loss_above < loss_below, above, below)


def refine(start: Affine, solve: Callable[[Targets], Affine], pieces: Pieces) -> Affine:
    """Return the iterate with the least error of the ReLU's output, among the start and those of the alternation.

    Args:
        start: Initial map, returned itself if no iterate is better.
        solve: Returns the best admissible map for given targets.
        pieces: Inputs and targets.
    """
    best, least, current = start, float("inf"), start
    for penalty in _PENALTIES:
        error, targets = _error_and_targets(current, pieces, penalty)
        if error < least:
            best, least = current, error
        current = solve(targets)
    return current if _error_and_targets(current, pieces, 1.0)[0] < least else best


def _error_and_targets(map_: Affine, pieces: Pieces, penalty: float) -> tuple[float, Targets]:
    """Return E‖r(t) − r(Wx + c)‖² and the moments of the targets z."""
    groups, outputs, columns = map_.matrices.shape
    cross = torch.zeros(groups, outputs, columns, dtype=torch.float64)
    first = torch.zeros(groups, outputs, dtype=torch.float64)
    error, count = 0.0, 0
    for piece in pieces():
        inputs, goals, others = piece[:groups], piece[groups : 2 * groups], piece[2 * groups :]
        for group, (rows, goal) in enumerate(zip(inputs, goals, strict=True)):
            constant = map_.constants[group].to(rows)
            added = constant + others[group] if others else constant
            output = torch.addmm(added, rows, map_.matrices[group].to(rows).mT)
            error += float((goal.relu() - output.relu()).square().sum(dtype=torch.float64))
            z = nearest(goal, output, penalty)
            z = z - others[group] if others else z
            cross[group] += (z.mT @ rows).cpu()
            first[group] += z.sum(0, dtype=torch.float64).cpu()
        count += len(inputs[0])
    return error / max(count, 1), Targets(cross / max(count, 1), first / max(count, 1))
