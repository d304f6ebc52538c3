"""Sensitivity: what each layer alone costs when it is compressed, before and after a brief fine-tune."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import cos, pi, sin, sqrt, tan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from torch import nn

from lrzip.core.errors import UsageError
from lrzip.core.layers import Layer
from lrzip.core.numbers import finite
from lrzip.ranks import Candidate, Context
from lrzip.ranks.energy import Energy
from lrzip.search.variants import Variants
from lrzip.training.bench import Bench, make_bench
from lrzip.training.cache import Cache, key_of, network_digest
from lrzip.training.learning import Learning
from lrzip.training.outcomes import StepCallback

ENERGIES = (0.8, 0.9, 0.95)
CONFIDENCE = 0.95
Announce = Callable[[str], None]
"""Called with what is done next, for people."""


@dataclass(frozen=True)
class Spread:
    """Repeated measurements."""

    values: Sequence[float]

    @property
    def mean(self) -> float:
        """Their mean."""
        return fmean(self.values)

    @property
    def std(self) -> float | None:
        """Their standard deviation (n − 1); None of a single one."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def half_width(self) -> float | None:
        """Half the 95 % confidence interval of the mean, by Student's t; None of a single one."""
        count = len(self.values)
        return student_t(CONFIDENCE, count - 1) * stdev(self.values) / sqrt(count) if count > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as `--json` prints them."""
        numbers = {"mean": self.mean, "std": self.std, "ci95": self.half_width}
        return {"values": [finite(value) for value in self.values]} | {n: finite(v) for n, v in numbers.items()}


@dataclass(frozen=True)
class LayerSensitivity:
    """What one layer at one energy costs. A drop is in units of the metric, positive where the network gets worse.

    Attributes:
        layer: The layer.
        energy: Share of Σσ² that it keeps.
        rank: That this takes.
        parameters: Elements of the two factors.
        norm: ‖W‖_F.
        removed: ‖W − W_r‖_F.
        before: Drop before a fine-tune. Nothing in it is random.
        after: Drops after a fine-tune, one for each seed; None without.
    """

    layer: Layer
    energy: float
    rank: int
    parameters: int
    norm: float
    removed: float
    before: float
    after: Spread | None

    @property
    def drop(self) -> float:
        """The mean drop after the fine-tune if there was one, else before."""
        return self.after.mean if self.after else self.before

    def to_dict(self) -> dict[str, Any]:
        """Return the sensitivity as `--json` prints it."""
        return {
            "name": self.layer.name,
            "energy": self.energy,
            "rank": self.rank,
            "parameters_before": self.layer.weight.numel,
            "parameters_after": self.parameters,
            "frobenius_norm": self.norm,
            "removed_norm": self.removed,
            "drop_before": finite(self.before),
            "drop_after": self.after.to_dict() if self.after else None,
            "drop_per_norm": _over(self.drop, self.norm),
            "drop_per_removed_norm": _over(self.drop, self.removed),
        }


@dataclass(frozen=True)
class Sensitivities:
    """What all layers cost, each alone.

    Attributes:
        baseline: Metrics of the network as it is.
        metric: Name of the one that counts.
        unit: What a drop of one is called in it: 0.01 for points, else 1.
        layers: By energy, in the order of the network.
        finetune_steps: Of each brief fine-tune; 0 without.
        runs: Seeds.
        measured: How many results were not known before.
    """

    baseline: Mapping[str, float]
    metric: str
    unit: float
    layers: Sequence[LayerSensitivity]
    finetune_steps: int
    runs: int
    measured: int

    def to_dict(self) -> dict[str, Any]:
        """Return the sensitivities as `--json` prints them."""
        return {
            "metric": self.metric,
            "baseline": {name: finite(value) for name, value in self.baseline.items()},
            "finetune_steps": self.finetune_steps,
            "runs": self.runs,
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def ranking(self, energy: float) -> Sequence[str]:
        """Return the names of the layers at one energy, those that lose most first."""
        found = [item for item in self.layers if item.energy == energy]
        return [item.layer.name for item in sorted(found, key=lambda item: -item.drop)]


def sensitivity(
    path: str | Path,
    *,
    model: nn.Module,
    learning: Learning,
    energies: Sequence[float] = ENERGIES,
    finetune_steps: int = 0,
    runs: int = 1,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    cache: str | Path | None = None,
    key: str | None = None,
    trust: bool = False,
    announce: Announce | None = None,
    watch: StepCallback | None = None,
) -> Sensitivities:
    """Compress each layer of a dense checkpoint alone, and measure what that costs on the validation set.

    Args:
        path: The checkpoint.
        model: An instance of its architecture, changed in place.
        learning: What to measure on, and how to tune.
        energies: Shares of Σσ² that the layer keeps.
        finetune_steps: Steps of a fine-tune of the whole network after each compression; 0 goes without.
        runs: Seeds that the fine-tune is repeated with.
        only: Globs of the layers to take.
        skip: Globs of the layers to leave.
        cache: File that results are kept in by content; what it holds is not computed again.
        key: Which entry of a nested file holds the weights.
        trust: Allow what would run code from the files.
        announce: Called before each layer and energy.
        watch: Called after each step of a fine-tune.

    Raises:
        LrzipError: It could not be done.
    """
    bench = make_bench(path, model, learning, distil=True, key=key, trust=trust)
    variants = Variants.of(bench.model, only=only, skip=skip)
    results = Cache(Path(cache) if cache is not None else None)
    return sensitivities_of(
        bench,
        variants,
        results,
        energies=energies,
        finetune_steps=finetune_steps,
        runs=runs,
        announce=announce,
        watch=watch,
    )


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
    """Return the sensitivities of the layers of a network; arguments as for `sensitivity`.

    Raises:
        UsageError: An option is out of range.
    """
    rules = {energy: Energy(energy) for energy in energies}
    if runs < 1 or finetune_steps < 0:
        wrong = f"`--runs` takes a number from 1 on, got {runs}" if runs < 1 else "`--finetune-steps` is from 0 on"
        raise UsageError(f"{wrong}.")
    if runs > 1 and not finetune_steps:
        raise UsageError("`--runs` repeats a fine-tune with other seeds; without `--finetune-steps` nothing is random.")
    known = len(results)
    work = _Work(bench, results, network_digest(variants.model), finetune_steps, runs, watch)
    baseline = work.score("whole", lambda: variants.model)
    layers: list[LayerSensitivity] = []
    for candidate in variants.candidates:
        for energy, rule in rules.items():
            if announce:
                announce(f"{candidate.layer.name} at {100 * energy:g} %")
            rank = rule.choose([candidate], Context()).ranks[candidate.layer.name][0]
            layers.append(_measured(work, variants, candidate, energy, rank, bench.gain(baseline)))
    return Sensitivities(baseline, bench.scorer.first, bench.unit, layers, finetune_steps, runs, len(results) - known)


def student_t(confidence: float, freedom: int) -> float:
    """Return t such that Student's t with some degrees of freedom lies within ±t with this probability.

    By the closed forms of Abramowitz & Stegun, 26.7.3 and 26.7.4, in θ = atan(t / √ν), solved by bisection.
    """
    low, high = 0.0, pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, freedom) < confidence else (low, middle)
    return tan(low) * sqrt(freedom)


def _inside(theta: float, freedom: int) -> float:
    odd = freedom % 2
    term, total = (cos(theta), cos(theta)) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= (k - 1) / k * cos(theta) ** 2
        total += term
    if not odd:
        return sin(theta) * total
    return 2 / pi * (theta + (sin(theta) * total if freedom > 1 else 0.0))


@dataclass(frozen=True)
class _Work:
    """Measures networks, each once."""

    bench: Bench
    results: Cache
    digest: str
    steps: int
    runs: int
    watch: StepCallback | None

    def score(self, what: str, build: Callable[[], nn.Module]) -> dict[str, float]:
        """Return the metrics of a network as it is."""
        return self._known({"what": what}, lambda: self.bench.score(build()))

    def tuned(self, what: str, build: Callable[[], nn.Module], run: int) -> dict[str, float]:
        """Return the metrics of a network after a fine-tune."""
        before = self.bench.learning.settings
        settings = replace(before, steps=self.steps, seed=before.seed + run)

        def compute() -> dict[str, float]:
            outcome = self.bench.tune(build(), settings, self.watch)
            if outcome.stopped == "interrupted":
                raise KeyboardInterrupt
            return dict(outcome.best.scores)

        return self._known({"what": what, "settings": asdict(settings)}, compute)

    def _known(self, of: Mapping[str, Any], compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        key = key_of(self.digest, self.bench.identity if self.results.lasting else "", of)
        found = self.results.get(key)
        if found is None:
            scores = compute()
            self.results.put(key, {**of, "scores": {name: repr(value) for name, value in scores.items()}})
            return scores
        return {name: float(value) for name, value in found["scores"].items()}


def _measured(
    work: _Work, variants: Variants, candidate: Candidate, energy: float, rank: int, baseline: float
) -> LayerSensitivity:
    layer, spectrum, bench = candidate.layer, candidate.spectra[0], work.bench
    what = f"{layer.name} at rank {rank}"

    def build() -> nn.Module:
        return variants.alone(candidate, rank)

    before = baseline - bench.gain(work.score(what, build))
    after = [baseline - bench.gain(work.tuned(what, build, run)) for run in range(work.runs)] if work.steps else []
    return LayerSensitivity(
        layer,
        energy,
        rank,
        candidate.parameters((rank,)),
        spectrum.frobenius_norm,
        spectrum.tail(rank),
        before,
        Spread(after) if after else None,
    )


def _over(value: float, norm: float) -> float | None:
    return finite(value / norm) if norm else None
