"""Measure the sensitivity of the metric to each layer, before and after a brief fine-tuning."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import hypot
from typing import Any

from torch import nn

from lrzip.core.documents import Place, Record, mapping, text
from lrzip.core.errors import UsageError
from lrzip.ranks import Candidate, Context
from lrzip.ranks.energy import Energy
from lrzip.search.sensitivities import LayerSensitivity, Sensitivities
from lrzip.search.spread import Spread
from lrzip.search.variants import Variants
from lrzip.training.bench import Bench
from lrzip.training.cache import Cache, key_of, network_digest
from lrzip.training.outcomes import StepCallback

ENERGIES = (0.8, 0.9, 0.95)
Announce = Callable[[str], None]
"""Called with a description of the next measurement."""


def sensitivities_of(
    bench: Bench,
    variants: Variants,
    results: Cache,
    *,
    energies: Sequence[float] = ENERGIES,
    finetune_steps: int = 0,
    runs: int = 1,
    announce: Announce | None = None,
    watch: StepCallback | None = None,
) -> Sensitivities:
    """Compress each layer of a dense network alone, and measure the effect on the validation set.

    Args:
        bench: Tunes and measures networks.
        variants: Variants of the dense network.
        results: Stored results.
        energies: Shares of Σσ² that each layer keeps.
        finetune_steps: Steps of fine-tuning of the whole network after each compression; 0 disables it.
        runs: Number of seeds that fine-tuning is repeated with.
        announce: Called before each layer and energy.
        watch: Called after each step of fine-tuning.

    Raises:
        UsageError: An option is out of range.
    """
    rules = {energy: Energy(energy) for energy in energies}
    _check(runs, finetune_steps)
    known = results.added
    measurements = _Measurements(bench, variants, results, network_digest(variants.model), finetune_steps, runs, watch)
    baseline = measurements.score("whole", lambda: variants.model)
    layers: list[LayerSensitivity] = []
    for candidate in variants.candidates:
        for energy, rule in rules.items():
            if announce:
                announce(f"{candidate.layer.name} at {100 * energy:g} %")
            ranks = rule.choose([candidate], Context()).ranks[candidate.layer.name]
            layers.append(measurements.of_layer(candidate, energy, ranks, bench.gain(baseline)))
    return Sensitivities(baseline, bench.scorer.first, bench.unit, layers, finetune_steps, runs, results.added - known)


def _check(runs: int, finetune_steps: int) -> None:
    if runs < 1:
        raise UsageError(f"`runs` takes a number from 1 on, got {runs}.")
    if finetune_steps < 0:
        raise UsageError(f"`finetune_steps` takes a number from 0 on, got {finetune_steps}.")
    if runs > 1 and not finetune_steps:
        raise UsageError("`runs` repeats fine-tuning with other seeds; without `finetune_steps` nothing is random.")


@dataclass(frozen=True)
class _Measurements:
    """Measures compressed networks, each once.

    Attributes:
        bench: Tunes and measures networks.
        variants: Variants of the dense network.
        results: Stored results.
        digest: Digest of the dense network.
        steps: Steps of fine-tuning; 0 disables it.
        runs: Number of seeds.
        watch: Called after each step of fine-tuning.
    """

    bench: Bench
    variants: Variants
    results: Cache
    digest: str
    steps: int
    runs: int
    watch: StepCallback | None

    def of_layer(
        self, candidate: Candidate, energy: float, ranks: tuple[int, ...], baseline: float
    ) -> LayerSensitivity:
        """Return the effect of compressing one layer, relative to the metric of the dense network."""
        name = f"{candidate.layer.name} at rank {', '.join(map(str, ranks))}"

        def build() -> nn.Module:
            return self.variants.with_one_factorized(candidate.layer.name, ranks)

        before = baseline - self.bench.gain(self.score(name, build))
        runs = range(self.runs if self.steps else 0)
        after = [baseline - self.bench.gain(self._finetuned(name, build, run)) for run in runs]
        tails = [spectrum.tail(rank) for spectrum, rank in zip(candidate.spectra, ranks, strict=True)]
        return LayerSensitivity(
            layer=candidate.layer,
            energy=energy,
            ranks=ranks,
            parameters=candidate.parameters(ranks),
            norm=candidate.spectra[0].frobenius_norm,
            removed=hypot(*tails),
            before=before,
            after=Spread(after) if after else None,
        )

    def score(self, name: str, build: Callable[[], nn.Module]) -> dict[str, float]:
        """Return the metrics of a network without fine-tuning."""
        return self._cached({"what": name}, lambda: self.bench.score(build()))

    def _finetuned(self, name: str, build: Callable[[], nn.Module], run: int) -> dict[str, float]:
        before = self.bench.learning.settings
        settings = replace(before, steps=self.steps, seed=before.seed + run)

        def compute() -> dict[str, float]:
            outcome = self.bench.tune(build(), settings, self.watch)
            if outcome.stopped == "interrupted":
                raise KeyboardInterrupt
            return dict(outcome.best.scores)

        return self._cached({"what": name, "settings": asdict(settings)}, compute)

    def _cached(self, question: Mapping[str, Any], compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        key = key_of(self.digest, self.bench.identity if self.results.lasting else "", question)
        found = self.results.get(key, self._read_scores)
        if found is None:
            found = compute()
            self.results.put(key, {**question, "scores": {name: repr(value) for name, value in found.items()}})
        return found

    def _read_scores(self, document: Record) -> dict[str, float]:
        """Return stored metrics; all of those that are measured must be there, as texts of any floating-point value."""
        scores = document.read("scores", mapping(_score))
        if scores.keys() != self.bench.scorer.metrics.keys():
            raise document.place.at("scores").fault(f"has other metrics than {', '.join(self.bench.scorer.metrics)}")
        return scores


def _score(value: Any, place: Place) -> float:
    try:
        return float(text(value, place))
    except ValueError as error:
        raise place.wrong("the text of a number", value) from error
