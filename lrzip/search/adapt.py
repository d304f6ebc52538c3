"""Search layer by layer: the adaptive compression of Kant, Compression of Neural Networks (2025), section 15.2.2."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import sqrt
from typing import Any

from lrzip.core.documents import Record, each, number, whole
from lrzip.ranks import Candidate
from lrzip.search.descend import MARGIN
from lrzip.search.trial import Trial, ranks_document
from lrzip.search.trials import Trials
from lrzip.search.variants import Ranks, Variant, Variants
from lrzip.training.settings import Settings

# Lowest energies of the first, the last and the other layers, and the highest energy that is tried.
FIRST_ENERGY, LAST_ENERGY, LOWEST_ENERGY, HIGHEST_ENERGY = 0.95, 0.9, 0.3, 0.99
# In that method, the whole network is tuned for 5 epochs, and a single layer for 3.
_LONGER = 5 / 3
# Ranks within this ratio are not distinguished.
_RANK_TOLERANCE = 1.05


def adapt(trials: Trials, settings: Settings) -> Trial:
    """Return the network that adaptive compression finds; the dense one if no layer can be compressed.

    The first and the last layer are compressed mildly, then the others from last to first. The rank of each layer is
    found by bisection, as the smallest one with which a brief fine-tuning stays within the bound; then the whole
    network is tuned. The search ends when the metric comes close to the bound.

    Args:
        trials: Runs trials.
        settings: Settings of one brief fine-tuning.

    Raises:
        Interrupted: The user interrupted the search.
    """
    final = longer(settings)
    names = [candidate.layer.name for candidate in trials.variants.candidates]
    lowest = {names[-1]: LAST_ENERGY} | {names[0]: FIRST_ENERGY}
    current = trials.dense
    for name in dict.fromkeys([names[0], names[-1]]):
        current = _compress_layer(trials, current, name, lowest[name], settings)
    if current is not trials.dense:
        current = trials.attempt(current, {"tune": "whole"}, None, final)
        trials.keep(current)
    for name in reversed(names[1:-1]):
        found = _compress_layer(trials, current, name, LOWEST_ENERGY, settings)
        if found is not current:
            current = trials.attempt(found, {"tune": "whole"}, None, final)
            trials.keep(current)
            if -trials.shortfall(current) < min(MARGIN, trials.bound / 2):
                break
    return current


def _compress_layer(trials: Trials, origin: Trial, name: str, lowest: float, settings: Settings) -> Trial:
    """Return the network with one more layer at its smallest rank within the bound, or the origin if none is.

    Args:
        trials: Runs trials.
        origin: The network to compress further.
        name: Name of the layer.
        lowest: Lowest energy to try.
        settings: Settings of one brief fine-tuning.
    """
    candidate = _candidate(trials.variants, name)
    energies, break_even_rank = trials.note(
        origin, {"energies of": name}, partial(_energies, name), partial(_read_energies, max(candidate.max_ranks))
    )
    low = _rank_for(energies, lowest)
    high = min(_rank_for(energies, HIGHEST_ENERGY), break_even_rank)
    best = origin
    while low <= high and (best is origin or high > _RANK_TOLERANCE * low):
        rank = min(max(round(sqrt(low * high)), low), high)
        ranks = candidate.equal(rank)
        action = {"layer": name, "rank": ranks_document(ranks), "energy": energies[rank - 1]}
        trial = trials.attempt(origin, action, partial(_factorized, {**origin.ranks, name: ranks}), settings)
        if trial.within:
            best, high = trial, rank - 1
        else:
            low = rank + 1
        trials.keep(origin, best)
    return best


def longer(settings: Settings) -> Settings:
    """Return the settings of tuning the whole network: 5/3 of the steps of a brief fine-tuning."""
    if settings.steps is not None:
        return replace(settings, steps=round(_LONGER * settings.steps))
    return replace(settings, epochs=round(_LONGER * settings.epochs))


def _energies(name: str, variants: Variants) -> Mapping[str, Any]:
    """Return the energies kept at ranks from 1 on, equal along all unfoldings, and the largest rank that saves.

    With several unfoldings, the smallest of their energies is used.
    """
    candidate = _candidate(variants, name)
    ranks = [candidate.equal(rank) for rank in range(1, max(candidate.max_ranks) + 1)]
    energies = [
        min(spectrum.energy(rank) for spectrum, rank in zip(candidate.spectra, each, strict=True)) for each in ranks
    ]
    return {"values": [round(energy, 6) for energy in energies], "break_even_rank": candidate.break_even_rank}


def _read_energies(count: int, document: Record) -> tuple[tuple[float, ...], int]:
    energies = document.read("values", each(number(0, 1), least=count))
    return energies, document.read("break_even_rank", whole(0, count))


def _candidate(variants: Variants, name: str) -> Candidate:
    return next(candidate for candidate in variants.candidates if candidate.layer.name == name)


def _rank_for(energies: Sequence[float], energy: float) -> int:
    return next((rank for rank, value in enumerate(energies, 1) if value >= energy), len(energies))


def _factorized(ranks: Ranks, variants: Variants) -> Variant:
    return variants.factorized(ranks)
