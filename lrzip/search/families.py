"""Families of compressed networks: one variant for every number of parameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from lrzip.ranks import Candidate
from lrzip.search.sensitivity import sensitivities_of
from lrzip.search.trials import Trials
from lrzip.search.variants import Ranks, Variant, Variants

Make = Callable[[Variants, Sequence[str], int], Variant]
"""Returns the largest variant of a family within a number of parameters, with only some layers factorized."""

# Kant (2025), section 13.3.4: the number of layers that are critical, and the energy at which they are compared.
_CRITICAL = 2
_SENSITIVITY_ENERGY = 0.8


@dataclass(frozen=True)
class Family:
    """Variants of every size.

    Attributes:
        name: Name of the strategy.
        layers: Names of the layers that are factorized.
        make: Builds a variant.
    """

    name: str
    layers: Sequence[str]
    make: Make

    @classmethod
    def of(cls, strategy: str, trials: Trials) -> "Family":
        """Return the family of a strategy, one of `FAMILIES`."""
        make, scope = FAMILIES[strategy]
        return cls(strategy, scope(trials), make)

    def build(self, parameters: int, variants: Variants) -> Variant:
        """Return the largest variant within a number of parameters."""
        return self.make(variants, self.layers, parameters)


def _by_budget(variants: Variants, layers: Sequence[str], parameters: int) -> Variant:
    """Allocate one budget to all layers."""
    del layers
    return variants.within(parameters)


def _by_share(
    ranks_of: Callable[[Candidate, float], tuple[int, ...]],
    variants: Variants,
    layers: Sequence[str],
    parameters: int,
) -> Variant:
    """Give every layer the ranks that the same share determines."""
    chosen = [candidate for candidate in variants.candidates if candidate.layer.name in layers]

    def ranks(share: float) -> Ranks:
        return {candidate.layer.name: ranks_of(candidate, share) for candidate in chosen}

    return variants.factorized(variants.largest_ranks(parameters, ranks))


def _ranks_by_energy(candidate: Candidate, share: float) -> tuple[int, ...]:
    return tuple(spectrum.rank_for_energy(share) for spectrum in candidate.spectra)


def _ranks_by_ratio(candidate: Candidate, share: float) -> tuple[int, ...]:
    return candidate.equal(max(candidate.largest_rank(int(share * candidate.layer.weight.numel)), 1))


def _ranks_by_share(candidate: Candidate, share: float) -> tuple[int, ...]:
    return tuple(max(int(share * largest), 1) for largest in candidate.max_ranks)


def _all_layers(trials: Trials) -> Sequence[str]:
    return [candidate.layer.name for candidate in trials.variants.candidates]


def _robust_layers(trials: Trials) -> Sequence[str]:
    """Return the less sensitive half of the layers."""
    ranking = _ranking(trials)
    return ranking[len(ranking) // 2 :]


def _uncritical_layers(trials: Trials) -> Sequence[str]:
    """Return all layers but the two most sensitive ones; of two or three layers, all but one."""
    ranking = _ranking(trials)
    return ranking[min(_CRITICAL, len(ranking) // 2) :]


def _ranking(trials: Trials) -> Sequence[str]:
    found = sensitivities_of(trials.bench, trials.variants, trials.results, energies=(_SENSITIVITY_ENERGY,))
    return found.ranking(_SENSITIVITY_ENERGY)


_BY_ENERGY = partial(_by_share, _ranks_by_energy)
FAMILIES: Mapping[str, tuple[Make, Callable[[Trials], Sequence[str]]]] = {
    "global": (_by_budget, _all_layers),
    "uniform": (partial(_by_share, _ranks_by_share), _all_layers),
    "ratio": (partial(_by_share, _ranks_by_ratio), _all_layers),
    "energy": (_BY_ENERGY, _all_layers),
    "selective": (_BY_ENERGY, _robust_layers),
    "avoid-critical": (_BY_ENERGY, _uncritical_layers),
}
