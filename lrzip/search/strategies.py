"""The strategies by which `compress_within` searches for a small network.

Most of them follow P. Kant, Compression of Neural Networks (2025), for comparison.
"""

from collections.abc import Mapping

from lrzip.search.adapt import adapt
from lrzip.search.descend import descend
from lrzip.search.families import Family
from lrzip.search.trial import Trial
from lrzip.search.trials import Trials
from lrzip.training.settings import Settings

STRATEGIES: Mapping[str, str] = {
    "global": "one budget for all layers",
    "adaptive": "layer by layer, critical ones first (Kant 2025, 15.2.2)",
    "uniform": "the same share of every rank",
    "selective": "the same energy in the less sensitive half of the layers (Kant 2025, 13.3.4)",
    "avoid-critical": "the same energy in all but the two most sensitive layers (Kant 2025, 13.3.4)",
    "ratio": "the same ratio of parameters in every layer (Kant 2025, 13.5)",
    "energy": "the same energy in every layer (Kant 2025, 13.5)",
}
"""A description of each strategy, by its name."""

DEFAULT_STRATEGY = "global"

_MANNERS: Mapping[str, float] = {"conservative": 1.0, "moderate": 3.0, "aggressive": 5.0}


def search(strategy: str, trials: Trials, settings: Settings) -> Trial:
    """Return the smallest network within the bound that a strategy finds; the dense one if it finds none.

    Args:
        strategy: One of `STRATEGIES`.
        trials: Runs trials, and records them in its `history`.
        settings: Settings of one brief fine-tuning.

    Raises:
        Interrupted: The user interrupted the search.
    """
    if strategy == "adaptive":
        return adapt(trials, settings)
    return descend(trials, Family.of(strategy, trials), settings)


def manner_of(drop: float) -> str:
    """Return the name that section 15.2.2 of Kant (2025) gives to a bound of `drop` percentage points."""
    return next((name for name, largest in _MANNERS.items() if drop <= largest), "very aggressive")
