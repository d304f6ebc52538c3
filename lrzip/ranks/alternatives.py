"""Choose ranks for each layer by itself, and the best one of its decompositions at these ranks."""

from collections.abc import Callable, Sequence

from lrzip.ranks.candidate import Candidate, Pick
from lrzip.ranks.context import Choice

RanksOf = Callable[[Candidate], tuple[int, ...] | None]
"""Returns the ranks of a layer with one decomposition, or None to leave it dense."""


def smallest(candidates: Sequence[Candidate], ranks_of: RanksOf) -> Choice:
    """Return ranks that reach the same accuracy, with the decomposition of each layer that has the fewest parameters.

    Args:
        candidates: The layers.
        ranks_of: Returns ranks that reach the accuracy.
    """
    return _choice(candidates, ranks_of, lambda candidate, ranks: candidate.parameters(ranks))


def most_accurate(
    candidates: Sequence[Candidate], ranks_of: RanksOf, loss: Callable[[Candidate, tuple[int, ...]], float | None]
) -> Choice:
    """Return ranks of the same cost, with the decomposition of each layer that has the least predicted loss.

    Args:
        candidates: The layers; those with several decompositions have spectra.
        ranks_of: Returns ranks of that cost.
        loss: Predicts the loss of ranks.
    """
    return _choice(candidates, ranks_of, lambda candidate, ranks: loss(candidate, ranks) or 0.0)


def _choice(
    candidates: Sequence[Candidate], ranks_of: RanksOf, badness: Callable[[Candidate, tuple[int, ...]], float]
) -> Choice:
    picks: dict[str, Pick] = {}
    for candidate in candidates:
        found = [(each, ranks) for each in candidate.alternatives if (ranks := ranks_of(each))]
        if len(found) > 1:
            saving = [(each, ranks) for each, ranks in found if each.saves(ranks)] or found
            found = [min(saving, key=lambda item: badness(*item))]
        for best, ranks in found:
            picks[candidate.group.name] = Pick(best.decomposition, ranks)
    return Choice(picks)
