"""The rank rule `budget`: minimize the predicted loss within a budget for the whole checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

from lrzip.core.budget_use import BudgetUse
from lrzip.core.errors import LrzipError, UsageError
from lrzip.ranks import Candidate, Choice, Context, Meter
from lrzip.ranks.amounts import UNITS, parse_amount
from lrzip.ranks.knapsack import least_cost
from lrzip.ranks.tradeoffs import Tradeoffs


@dataclass(frozen=True)
class Budget:
    """The ranks of all layers with the least predicted loss within a budget; a layer may also stay dense.

    Attributes:
        unit: `params`, `nbytes`, `macs` or `latency`.
        amount: Share of the dense checkpoint, or a count.
        is_share: Whether `amount` is a share.
    """

    unit: str
    amount: float
    is_share: bool
    needs_spectra = True

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Return the budget that a text names: `params=50%`, `nbytes=10MB` or `macs=20M`.

        Raises:
            UsageError: The text is malformed, or names several budgets.
        """
        unit, _, amount = text.partition("=")
        if unit not in UNITS:
            known = ", ".join(f"{name}=…" for name in UNITS)
            raise UsageError(f"`budget` takes {known}, such as `params=50%`, got `{text}`.")
        if "," in amount:
            raise UsageError(f"`budget={text}` names several budgets, for a curve of plans: add `dry_run=True`.")
        return cls(unit, *parse_amount(unit, amount))

    def __str__(self) -> str:
        return f"budget {self.unit}={f'{100 * self.amount:g}%' if self.is_share else f'{self.amount:,.0f}'}"

    def settled(self, candidate: Candidate) -> bool:
        """Return whether singular values are exact, so that a plan does not depend on how they were computed."""
        return not any(spectrum.slack for spectrum in candidate.spectra)

    def choose(self, candidates: Sequence[Candidate], context: Context) -> Choice:
        """Return the ranks with the least predicted loss, and how much of the budget they use.

        Raises:
            UsageError: The budget is above the amount that the dense checkpoint uses.
            LrzipError: The budget is below the smallest amount that can be reached.
        """
        meter = context.meter
        assert meter, "a rule with a unit gets a meter"
        limit = self._limit(meter)
        options = Tradeoffs.of(candidates, meter, context)
        least = options.fixed + least_cost(options.items)
        if least > limit:
            raise self._unreachable(least, limit, meter)
        found = context.objective.allocate(options.items, limit - options.fixed)
        picks = options.picks(found.labels)
        used, name = options.fixed + found.cost, context.objective.name
        return Choice(picks, BudgetUse(self.unit, meter.dense, limit, used, name, found.loss, found.bound))

    def _limit(self, meter: Meter) -> int:
        limit = floor(self.amount * meter.dense) if self.is_share else floor(self.amount)
        if limit > meter.dense:
            noun = UNITS[self.unit].noun
            raise UsageError(f"`{self}` is more than the dense checkpoint has: {meter.dense:,} {noun}. Give less.")
        return limit

    def _unreachable(self, least: int, limit: int, meter: Meter) -> LrzipError:
        share = ceil(1000 * least / max(meter.dense, 1)) / 10
        return LrzipError(
            f"`{self}` is {limit:,} {UNITS[self.unit].noun}, but all that stays dense and the smallest ranks need "
            f"{least:,}. Give at least {self.unit}={share:g}%."
        )


def parse_budgets(text: str) -> tuple[Budget, ...]:
    """Return the budgets of a list such as `params=10%,20%,30%`; only the first needs to name the unit.

    Raises:
        UsageError: An amount is malformed, or the units differ.
    """
    first, *others = text.split(",")
    unit = first.partition("=")[0]
    for other in others:
        if "=" in other and other.partition("=")[0].strip() != unit:
            raise UsageError(f"`budget={text}` mixes units. Give one unit, such as `params=10%,20%,30%`.")
    parts = [first, *(other.strip() if "=" in other else f"{unit}={other.strip()}" for other in others)]
    return tuple(Budget.parse(part) for part in parts)
