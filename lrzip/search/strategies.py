"""Ways to look for a small network within a bound.

Most are those of P. Kant, Compression of Neural Networks (2025), for comparison.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import exp, log, sqrt
from typing import Any

from torch import nn

from lrzip.ranks import Candidate
from lrzip.search.sensitivity import sensitivities_of
from lrzip.search.trials import Trial, Trials
from lrzip.search.variants import Ranks, Variants
from lrzip.training.settings import Settings

Make = Callable[[Variants, Sequence[str], int], nn.Module]
"""Makes the largest network of a family within a number of parameters, by factorizing some layers."""


# Kant (2025), section 15.2.2: what the first and the last layer keep at least, how far the others go, and how near to
# the bound the search stops.
FIRST_ENERGY, LAST_ENERGY, LOWEST_ENERGY, HIGHEST_ENERGY = 0.95, 0.9, 0.3, 0.99
MARGIN = 0.005
# The whole is tuned for 5 epochs there where a layer is for 3.
_WHOLE = 5 / 3
# Sizes are halved at first; a search ends where it would gain less than a twentieth.
_FIRST_STEP, _LAST_STEP = log(2), log(1.05)
_MORE_ROUNDS = 2
_CRITICAL = 2
_SENSITIVE_ENERGY = 0.8
# Ranks this near are not told apart.
_RANK_TOLERANCE = 1.05


@dataclass(frozen=True)
class Family:
    """Networks of every size.

    Attributes:
        name: Of the strategy.
        layers: Names of those that are factorized.
        make: Makes one.
    """

    name: str
    layers: Sequence[str]
    make: Make

    def build(self, parameters: int, variants: Variants) -> nn.Module:
        """Return the largest network within a number of parameters."""
        return self.make(variants, self.layers, parameters)


def search(strategy: str, trials: Trials, settings: Settings) -> Trial:
    """Return the smallest network within the bound that a strategy finds; the dense one if there is none.

    Args:
        strategy: One of `STRATEGIES`.
        trials: Tries networks.
        settings: Of a brief fine-tune.

    Raises:
        Interrupted: Someone asked to stop; what was tried so far is known to the prober.
    """
    if strategy == "adaptive":
        return adapt(trials, settings)
    make, scope = FAMILIES[strategy]
    return descend(trials, Family(strategy, scope(trials), make), settings)


def descend(trials: Trials, family: Family, settings: Settings) -> Trial:
    """Go down in size, each network made from the tuned one before it, as far as the bound allows.

    The step, a factor of 2 at first, is halved (its logarithm) where a network is not within the bound. Such a network
    is tuned on before it is given up, as long as each round makes up half of what is missing.
    """
    current, step = trials.dense, _FIRST_STEP
    least = trials.variants.least(family.layers)
    while step >= _LAST_STEP and current.parameters > least:
        parameters = max(round(current.parameters * exp(-step)), least)
        what = {"strategy": family.name, "parameters": parameters}
        tried = trials.attempt(current, what, partial(family.build, parameters), settings)
        tried = _tuned_on(trials, tried, settings)
        if tried.within:
            current = tried
        else:
            step /= 2
        trials.keep(current)
    return current


def adapt(trials: Trials, settings: Settings) -> Trial:
    """Compress layer by layer: the first and the last gently, then the others from late to early (Kant 2025, 15.2.2).

    The rank of each is found by bisection, as the smallest with which a brief fine-tune stays within the bound; then
    the whole is tuned. It ends where the metric comes near the bound.
    """
    whole = _longer(settings)
    names = [candidate.layer.name for candidate in trials.variants.candidates]
    critical = {names[-1]: LAST_ENERGY} | {names[0]: FIRST_ENERGY}
    current = trials.dense
    for name in dict.fromkeys([names[0], names[-1]]):
        current = _most_aggressive(trials, current, name, critical[name], settings)
    if current is not trials.dense:
        current = trials.attempt(current, {"tune": "whole"}, None, whole)
        trials.keep(current)
    for name in reversed(names[1:-1]):
        found = _most_aggressive(trials, current, name, LOWEST_ENERGY, settings)
        if found is not current:
            current = trials.attempt(found, {"tune": "whole"}, None, whole)
            trials.keep(current)
            if -trials.shortfall(current) < min(MARGIN, trials.bound / 2):
                break
    return current


def _most_aggressive(trials: Trials, origin: Trial, name: str, lowest: float, settings: Settings) -> Trial:
    """Return the network with the smallest rank of one more layer that is within the bound, or the origin."""
    energies = trials.note(origin, {"energies of": name}, partial(_energies, name))
    low = _rank_for(energies["values"], lowest)
    high = min(_rank_for(energies["values"], HIGHEST_ENERGY), energies["break_even_rank"])
    best = origin
    while low <= high and (best is origin or high > _RANK_TOLERANCE * low):
        rank = min(max(round(sqrt(low * high)), low), high)
        ranks = {**origin.ranks, name: rank}
        what = {"layer": name, "rank": rank, "energy": energies["values"][rank - 1]}
        tried = trials.attempt(origin, what, partial(_with_ranks, ranks), settings)
        if tried.within:
            best, high = tried, rank - 1
        else:
            low = rank + 1
        trials.keep(origin, best)
    return best


def _tuned_on(trials: Trials, tried: Trial, settings: Settings) -> Trial:
    """Return a network tuned until it is within the bound, or given up: too far from it, or too slow to come near."""
    missing = trials.shortfall(tried)
    for round_ in range(2, 2 + _MORE_ROUNDS):
        improved = trials.bench.gain(tried.scores) > trials.bench.gain(tried.before)
        if tried.within or not improved or missing > trials.bound + MARGIN:
            break
        other = replace(settings, seed=settings.seed + round_)
        tried = trials.attempt(tried, {"tune": "on", "round": round_}, None, other)
        if trials.shortfall(tried) > missing / 2:
            break
        missing = trials.shortfall(tried)
    return tried


def _longer(settings: Settings) -> Settings:
    if settings.steps is not None:
        return replace(settings, steps=round(_WHOLE * settings.steps))
    return replace(settings, epochs=round(_WHOLE * settings.epochs))


def _energies(name: str, variants: Variants) -> Mapping[str, Any]:
    """Return the energies that the ranks of a layer keep, from 1 on, and the largest one that saves."""
    candidate = next(candidate for candidate in variants.candidates if candidate.layer.name == name)
    spectrum = candidate.spectra[0]
    values = [round(spectrum.energy(rank + 1), 6) for rank in range(len(spectrum.values))]
    return {"values": values, "break_even_rank": candidate.break_even_rank}


def _rank_for(energies: Sequence[float], energy: float) -> int:
    return next((rank for rank, value in enumerate(energies, 1) if value >= energy), len(energies))


def _with_ranks(ranks: Ranks, variants: Variants) -> nn.Module:
    return variants.factorized(ranks)


def _globally(variants: Variants, layers: Sequence[str], parameters: int) -> nn.Module:
    """Let one budget choose all ranks."""
    del layers
    return variants.within(parameters)


def _by_share(
    rank_of: Callable[[Candidate, float], int], variants: Variants, layers: Sequence[str], parameters: int
) -> nn.Module:
    """Give every layer the rank that the same share stands for."""
    chosen = [candidate for candidate in variants.candidates if candidate.layer.name in layers]

    def ranks(share: float) -> Ranks:
        return {candidate.layer.name: rank_of(candidate, share) for candidate in chosen}

    return variants.factorized(variants.largest(parameters, ranks))


def _rank_by_energy(candidate: Candidate, share: float) -> int:
    return candidate.spectra[0].rank_for_energy(share)


def _rank_by_ratio(candidate: Candidate, share: float) -> int:
    return max(candidate.largest_rank(int(share * candidate.layer.weight.numel)), 1)


def _rank_by_share(candidate: Candidate, share: float) -> int:
    return max(int(share * candidate.max_ranks[0]), 1)


def _all(trials: Trials) -> Sequence[str]:
    return [candidate.layer.name for candidate in trials.variants.candidates]


def _robust(trials: Trials) -> Sequence[str]:
    """Return the half of the layers that loses least, each compressed alone."""
    ranking = _ranking(trials)
    return ranking[len(ranking) // 2 :]


def _uncritical(trials: Trials) -> Sequence[str]:
    """Return all layers but the two that lose most; of two or three, all but one."""
    ranking = _ranking(trials)
    return ranking[min(_CRITICAL, len(ranking) // 2) :]


def _ranking(trials: Trials) -> Sequence[str]:
    found = sensitivities_of(trials.bench, trials.variants, trials.results, energies=(_SENSITIVE_ENERGY,))
    return found.ranking(_SENSITIVE_ENERGY)


_BY_ENERGY = partial(_by_share, _rank_by_energy)
FAMILIES: Mapping[str, tuple[Make, Callable[[Trials], Sequence[str]]]] = {
    "global": (_globally, _all),
    "uniform": (partial(_by_share, _rank_by_share), _all),
    "ratio": (partial(_by_share, _rank_by_ratio), _all),
    "energy": (_BY_ENERGY, _all),
    "selective": (_BY_ENERGY, _robust),
    "avoid-critical": (_BY_ENERGY, _uncritical),
}
STRATEGIES: Mapping[str, str] = {
    "global": "one budget for all layers",
    "adaptive": "layer by layer, critical ones first (Kant 2025, 15.2.2)",
    "uniform": "the same share of every rank",
    "selective": "the same energy in the half of the layers that loses least alone (Kant 2025, 13.3.4)",
    "avoid-critical": "the same energy in all but the two layers that lose most alone (Kant 2025, 13.3.4)",
    "ratio": "the same ratio of parameters in every layer (Kant 2025, 13.5)",
    "energy": "the same energy in every layer (Kant 2025, 13.5)",
}


def manner(points: float) -> str:
    """Return what section 15.2.2 of Kant (2025) calls a bound of so many points."""
    names: dict[str, Any] = {"conservative": 1.0, "moderate": 3.0, "aggressive": 5.0}
    return next((name for name, most in names.items() if points <= most), "very aggressive")
