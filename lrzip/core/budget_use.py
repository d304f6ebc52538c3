"""The use of a budget by a plan."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BudgetUse:
    """Use of a budget by a plan.

    Attributes:
        unit: `params`, `nbytes`, `macs`, or `latency` in nanoseconds.
        dense: Amount of the dense checkpoint.
        limit: The budget.
        used: Amount of the compressed checkpoint, including all that is left unchanged.
        objective: Name of the objective that the ranks minimize.
        predicted_loss: Value of the objective over the layers that the budget covers.
        bound: Lower bound on that value over all plans within the budget.
    """

    unit: str
    dense: int
    limit: int
    used: int
    objective: str
    predicted_loss: float
    bound: float

    def to_dict(self) -> dict[str, Any]:
        """Return the budget as it appears in plan files and JSON documents."""
        return {
            "unit": self.unit,
            "whole": self.dense,
            "limit": self.limit,
            "used": self.used,
            "unused": self.limit - self.used,
            "objective": self.objective,
            "predicted_loss": self.predicted_loss,
            "bound": self.bound,
        }
