"""The inputs and outputs of rank rules, besides the candidates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lrzip.core.budget_use import BudgetUse
from lrzip.core.layers import Layer
from lrzip.ranks.candidate import Pick
from lrzip.ranks.objectives import DEFAULT_OBJECTIVE, OBJECTIVES, Objective


@dataclass(frozen=True)
class Meter:
    """Counts the resource that a budget limits.

    Attributes:
        dense: Amount that the dense checkpoint uses.
        cost: Amount that a layer uses, factorized as picked, or dense if the pick is None.
        affine: Whether `cost` is affine in each rank. Counts of parameters, bytes and multiply-accumulates are.
    """

    dense: int
    cost: Callable[[Layer, Pick | None], int]
    affine: bool = True


@dataclass(frozen=True)
class Context:
    """Everything that a rule may use besides its candidates.

    Attributes:
        meter: Counts the unit of the rule; None for rules without a unit.
        saved: Amount that the decisions of other rules already save, in the unit of the meter.
        round_to: Multiple that ranks should have where such ranks still save; None for each layer's own multiple.
        objective: Predicts the loss of each rank.
    """

    meter: Meter | None = None
    saved: int = 0
    round_to: int | None = None
    objective: Objective = OBJECTIVES[DEFAULT_OBJECTIVE]


@dataclass(frozen=True)
class Choice:
    """The decompositions and ranks that a rule chose.

    Attributes:
        picks: Picks by layer name; layers without an entry stay dense.
        budget: Use of the budget, from rules that have one.
    """

    picks: Mapping[str, Pick] = field(default_factory=dict)
    budget: BudgetUse | None = None

    @property
    def ranks(self) -> Mapping[str, tuple[int, ...]]:
        """The ranks by layer name."""
        return {name: pick.ranks for name, pick in self.picks.items()}
