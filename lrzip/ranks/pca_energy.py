"""The rank rule `pca-energy`: greedy choice of ranks that keep most energy within a number of multiply-accumulates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from math import floor

import numpy as np
from numpy.typing import NDArray

from lrzip.core.budget_use import BudgetUse
from lrzip.core.errors import LrzipError, UsageError
from lrzip.ranks import Candidate, Choice, Context, check, number_of
from lrzip.ranks.knapsack import Allocation, Options, last_options, least_cost, sum_of_costs
from lrzip.ranks.objectives import OBJECTIVES
from lrzip.ranks.tradeoffs import Tradeoffs

_OBJECTIVE = OBJECTIVES["log-energy"]


@dataclass(frozen=True)
class PCAEnergy:
    """Ranks with a large product of kept shares of energy, at 1 / speedup of the multiply-accumulates.

    Zhang, Zou, He & Sun (2015, 'Accelerating very deep convolutional networks for classification and detection',
    section 2.4): the singular value whose energy is the least share of the kept energy of its layer, relative to the
    multiply-accumulates that removing it saves, is removed, until the network is fast enough. Energies are those of
    weights; with a calibration, those of outputs, as in the paper. Layers stay dense until a rank saves something: the
    first step leads to the rank with the least loss per multiply-accumulate saved.

    Attributes:
        speedup: Multiply-accumulates of the dense network over those of the factorized one, above 1.
    """

    speedup: float
    needs_spectra = True
    unit = "macs"

    def __post_init__(self) -> None:
        check("pca-energy:speedup", self.speedup, ok=self.speedup > 1, range_="above 1")

    @classmethod
    def parse(cls, text: str) -> "PCAEnergy":
        """Return the rule that a text names: `speedup=4`.

        Raises:
            UsageError: The text is malformed, or the number out of range.
        """
        name, _, number = text.partition("=")
        speedup = number_of(number)
        if name != "speedup" or speedup is None:
            raise UsageError(f"`pca-energy` takes the factor by which MACs shrink, such as speedup=4, got `{text}`.")
        return cls(speedup)

    def __str__(self) -> str:
        return f"pca-energy speedup={self.speedup:g}"

    def settled(self, candidate: Candidate) -> bool:
        """Return whether singular values are exact, so that a plan does not depend on how they were computed."""
        return not any(spectrum.slack for spectrum in candidate.spectra)

    def choose(self, candidates: Sequence[Candidate], context: Context) -> Choice:
        """Return the ranks of the greedy choice, and its use of multiply-accumulates.

        Raises:
            LrzipError: The speedup is above the largest that can be reached.
        """
        meter = context.meter
        assert meter, "a rule with a unit gets a meter"
        limit = floor(meter.dense / self.speedup)
        options = Tradeoffs.of(candidates, meter, replace(context, objective=_OBJECTIVE))
        least = options.fixed + least_cost(options.items)
        if least > limit:
            most = floor(1000 * meter.dense / max(least, 1)) / 1000
            raise LrzipError(
                f"`{self}` is {limit:,} multiply-accumulates, but all that stays dense and the smallest ranks need "
                f"{least:,}. Give at most speedup={most:g}."
            )
        found = greedy(options.items, limit - options.fixed)
        used = options.fixed + found.cost
        spent = BudgetUse(self.unit, meter.dense, limit, used, _OBJECTIVE.name, found.loss, found.bound)
        return Choice(options.picks(found.labels), spent)


def greedy(items: Sequence[Options], budget: int) -> Allocation:
    """Return a choice of options within a budget, from steps with the least share of energy lost per cost saved.

    Args:
        items: Options of each item, with −log of the share of energy that is kept as losses.
        budget: Upper limit on the sum of costs, at least that of the cheapest options.
    """
    chosen = last_options(items)
    cost, price = sum_of_costs(items, chosen), 0.0
    steps = [(*_step(item, at), index) for index, (item, at) in enumerate(zip(items, chosen, strict=True)) if at]
    heapify(steps)
    while cost > budget:
        _, to, index = heappop(steps)
        item, at = items[index], int(chosen[index])
        price = float((item.losses[to] - item.losses[at]) / (item.costs[at] - item.costs[to]))
        # The last step leads no further than the budget needs.
        to = max(to, int(np.searchsorted(item.costs, item.costs[at] - (cost - budget), side="right")) - 1)
        cost -= int(item.costs[at] - item.costs[to])
        chosen[index] = to
        if to:
            heappush(steps, (*_step(item, to), index))
    return Allocation.of_sum(items, chosen, _bound(items, budget, price))


def _step(item: Options, at: int) -> tuple[float, int]:
    """Return the least share of energy lost per cost saved over all cheaper options, and the first such option."""
    lost: NDArray[np.float64] = -np.expm1(item.losses[at] - item.losses[:at])
    rates = lost / (item.costs[at] - item.costs[:at])
    to = int(np.argmin(rates))
    return float(rates[to]), to


def _bound(items: Sequence[Options], budget: int, price: float) -> float:
    """Return a lower bound on the sum of losses of every choice within a budget: the Lagrangian dual at a price."""
    return max(sum(float((item.losses + price * item.costs).min()) for item in items) - price * budget, 0.0)
