"""One budget for all layers together."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import ceil, floor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.layers import Layer
from lrzip.core.plan import BudgetUse
from lrzip.ranks import Candidate
from lrzip.ranks.knapsack import Options, least_cost
from lrzip.ranks.objectives import DEFAULT_OBJECTIVE, OBJECTIVES, Objective

_THOUSANDS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_BYTES = {f"{prefix}B": 10**power for prefix, power in (("", 0), ("k", 3), ("M", 6), ("G", 9))} | {
    f"{prefix}iB": 2**power for prefix, power in (("K", 10), ("M", 20), ("G", 30))
}
UNITS: Mapping[str, tuple[str, Mapping[str, int], str]] = {
    "params": ("parameters", _THOUSANDS, "50%, 1.2M or 120000"),
    "nbytes": ("bytes of tensors", {"": 1} | _BYTES, "50%, 10MB or 64KiB"),
    "macs": ("multiply-accumulates", _THOUSANDS, "40%, 20M or 1.5G"),
    "latency": ("nanoseconds of a run", {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}, "60%, 5ms or 800us"),
}
"""By unit: what it counts, what its suffixes stand for, and examples of amounts."""


Ranks: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Meter:
    """What a budget counts.

    Attributes:
        whole: Of the checkpoint as it is.
        cost: Of a layer whole, for None, or as a chain with some ranks.
        affine: Whether that is affine in each rank, as all counts are of stages that have at most one side of it each.
    """

    whole: int
    cost: Callable[[Layer, tuple[int, ...] | None], int]
    affine: bool = True


@dataclass(frozen=True)
class Budget:
    """The ranks of all layers with the least predicted loss within a budget, where a layer may also stay whole.

    Attributes:
        unit: `params`, `nbytes`, `macs` or `latency`.
        amount: Share of the whole checkpoint, or a count.
        is_share: Which of both.
        objective: What is to be made small.
    """

    unit: str
    amount: float
    is_share: bool
    objective: Objective = OBJECTIVES[DEFAULT_OBJECTIVE]
    needs_spectra = True

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Return the budget that `params=50%`, `nbytes=10MB` or `macs=20M` stands for.

        Raises:
            UsageError: It stands for none.
        """
        unit, _, amount = text.partition("=")
        if unit not in UNITS:
            known = ", ".join(f"{name}=…" for name in UNITS)
            raise UsageError(f"`--budget` takes {known}, such as `params=50%`, got `{text}`.")
        if "," in amount:
            raise UsageError(f"`--budget {text}` names several budgets, for a curve of plans: add `--dry-run`.")
        _, suffixes, examples = UNITS[unit]
        found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(%|[A-Za-z]*)", amount.strip())
        if not found or found[2] not in {"%", *suffixes}:
            raise UsageError(f"`--budget {unit}` takes an amount such as {examples}, got `{amount}`.")
        number, is_share = float(found[1]), found[2] == "%"
        if is_share and number > 100:
            raise UsageError(f"`--budget {text}` is more than the whole. Give at most 100%.")
        return cls(unit, number / 100 if is_share else number * suffixes[found[2]], is_share)

    def __str__(self) -> str:
        return f"budget {self.unit}={f'{100 * self.amount:g}%' if self.is_share else f'{self.amount:,.0f}'}"

    def settled(self, candidate: Candidate) -> bool:
        """Tell whether singular values are exact, so that what is planned does not depend on how it is computed."""
        return not any(spectrum.slack for spectrum in candidate.spectra)

    def choose(self, candidates: Sequence[Candidate]) -> Mapping[str, tuple[int, ...]]:
        """Return the ranks by layer name, without the layers that stay whole, as if there were nothing else."""
        by_layer = {candidate.layer.name: candidate for candidate in candidates}

        def cost(layer: Layer, ranks: tuple[int, ...] | None) -> int:
            return by_layer[layer.name].parameters(ranks) if ranks else layer.weight.numel

        whole = sum(candidate.layer.weight.numel for candidate in candidates)
        return self.spend(candidates, Meter(whole, cost), saved=0)[0]

    def spend(
        self, candidates: Sequence[Candidate], meter: Meter, *, saved: int, round_to: int | None = None
    ) -> tuple[Mapping[str, tuple[int, ...]], BudgetUse]:
        """Return the ranks by layer name, without the layers that stay whole, and what all comes to.

        Args:
            candidates: The layers, with the spectra of their unfoldings.
            meter: Counts them and the whole checkpoint.
            saved: What is already saved elsewhere in the checkpoint.
            round_to: Offer only multiples of it as ranks, where any saves; None for that of each layer.

        Raises:
            UsageError: The budget is above what the whole checkpoint counts.
            LrzipError: It is below what can be reached.
        """
        limit = floor(self.amount * meter.whole) if self.is_share else floor(self.amount)
        noun = UNITS[self.unit][0]
        if limit > meter.whole:
            raise UsageError(f"`{self}` is more than the whole, which has {meter.whole:,} {noun}. Give less.")
        fixed = meter.whole - saved - sum(meter.cost(candidate.layer, None) for candidate in candidates)
        # A sum over layers does not depend on their order if that is always the same.
        ordered = sorted(candidates, key=lambda candidate: candidate.layer.name)
        items = [self._options(candidate, meter, round_to or candidate.layer.round_to) for candidate in ordered]
        least = fixed + least_cost(items)
        if least > limit:
            share = ceil(1000 * least / max(meter.whole, 1)) / 10
            raise LrzipError(
                f"`{self}` is {limit:,} {noun}, but what stays whole and the smallest ranks come to {least:,}. "
                f"Give at least {self.unit}={share:g}%."
            )
        found = self.objective.allocate(items, limit - fixed)
        ranks = {c.layer.name: _ranks(c, place) for c, place in zip(ordered, found.labels, strict=True) if place}
        return ranks, BudgetUse(
            self.unit, meter.whole, limit, fixed + found.cost, self.objective.name, found.loss, found.bound
        )

    def _options(self, candidate: Candidate, meter: Meter, round_to: int) -> Options:
        """Return the ranks that save, by their place among all of them from 1 on, and 0 for the whole layer."""
        dense = meter.cost(candidate.layer, None)
        ranks = 1 + np.indices(candidate.max_ranks).reshape(len(candidate.max_ranks), -1)
        most = np.array(candidate.max_ranks)[:, None]
        small = _affine(candidate.parameters, ranks) < candidate.layer.weight.numel
        rounded = small & ((ranks % round_to == 0) | (ranks == most)).all(0)
        places = np.flatnonzero(rounded if rounded.any() else small)
        costs = (_affine if meter.affine else _each)(partial(meter.cost, candidate.layer), ranks[:, places])
        losses = self.objective.joint(candidate.spectra).ravel()[places]
        saves = costs < dense
        return Options.of(
            np.append(costs[saves], dense).astype(np.int64),
            np.append(losses[saves], 0.0),
            np.append(places[saves] + 1, 0).astype(np.int64),
        )


def _ranks(candidate: Candidate, place: int) -> tuple[int, ...]:
    """Return ranks by their place among all of them, from 1 on."""
    return tuple(1 + int(index) for index in np.unravel_index(place - 1, candidate.max_ranks))


def _each(count: Callable[[tuple[int, ...]], int], ranks: Ranks) -> Ranks:
    """Return what each of some ranks counts, (unfoldings, n)."""
    return np.array([count(tuple(map(int, column))) for column in ranks.T], dtype=np.int64)


def _affine(count: Callable[[tuple[int, ...]], int], ranks: Ranks) -> Ranks:
    """Return what each of some ranks counts, (unfoldings, n), where that is affine in each."""
    counts = np.zeros(ranks.shape[1], dtype=np.int64)
    for corner in product((1, 2), repeat=len(ranks)):
        weights = [2 - rank if at == 1 else rank - 1 for at, rank in zip(corner, ranks, strict=True)]
        counts += count(corner) * np.prod(weights, axis=0)
    return counts


def parse_size(option: str, text: str) -> int:
    """Return the bytes that `500MB` or `2GiB` stands for.

    Raises:
        UsageError: It stands for none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)", text.strip())
    if not found or found[2] not in {"", *_BYTES}:
        raise UsageError(f"`{option}` takes a size such as 500MB or 2GiB, got `{text}`.")
    scale: int = _BYTES.get(found[2], 1)
    return floor(float(found[1]) * scale)


def parse_budgets(text: str, objective: Objective) -> tuple[Budget, ...]:
    """Return the budgets of a list such as `params=10%,20%,30%`; the unit stands once.

    Raises:
        UsageError: One of them is none, or there are two units.
    """
    first, *others = text.split(",")
    unit = first.partition("=")[0]
    for other in others:
        if "=" in other and other.partition("=")[0].strip() != unit:
            raise UsageError(f"`--budget {text}` mixes units. Give one unit, such as `params=10%,20%,30%`.")
    parts = [first, *(other.strip() if "=" in other else f"{unit}={other.strip()}" for other in others)]
    return tuple(replace(Budget.parse(part), objective=objective) for part in parts)
