"""The trials of a search: each network is built, tuned and measured once."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import inf, isfinite
from typing import Any, TypeVar

from torch import Tensor

from lrzip.core.documents import Record, text
from lrzip.core.errors import LrzipError
from lrzip.networks.state import tensors_of
from lrzip.search.states import States
from lrzip.search.trial import NOT_SMALLER, Trial
from lrzip.search.variants import Variant, Variants
from lrzip.training.bench import Bench
from lrzip.training.cache import Cache, key_of, network_digest
from lrzip.training.outcomes import StepCallback
from lrzip.training.settings import Settings

T = TypeVar("T")
Build = Callable[[Variants], Variant]
"""Builds a factorized variant of a dense network."""

# Metrics are computed in float32; one that is exactly at the bound must count as within.
_ROUNDING = 1e-6


class Interrupted(Exception):
    """The user interrupted the search."""


@dataclass(frozen=True)
class Callbacks:
    """Functions that a search calls.

    Attributes:
        announce: Called before each trial with a description of it.
        watch: Called after each step of tuning.
        decided: Called with each trial.
    """

    announce: Callable[[str], None] | None = None
    watch: StepCallback | None = None
    decided: Callable[[Trial], None] | None = None


@dataclass
class Trials:
    """Runs trials, each of which builds a network from an earlier one, and decides which are within the bound.

    Trials are deterministic, and results are stored under a digest of everything that a network depends on. So a
    trial of an earlier run is never run again, unless its state is needed and no longer stored.

    Attributes:
        bench: Tunes and measures networks.
        variants: Variants of the dense network.
        results: Stored results, in memory or in a log file.
        states: Stored states of networks that later trials may start from.
        bound: Largest allowed loss of the first metric, in its own unit.
        callbacks: Functions to call.
        history: All trials, in order.
    """

    bench: Bench
    variants: Variants
    results: Cache
    states: States
    bound: float
    callbacks: Callbacks = field(default_factory=Callbacks)
    history: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._root = self._root_key()
        self._recompute: dict[str, Callable[[], Mapping[str, Tensor]]] = {}
        self._computed = False
        self._twins: dict[tuple[str, str], str] = {}
        self._latest: tuple[str, Variants] = self._root, self.variants
        self.floor = -inf
        known = self._known(self._root)
        self.dense = known if known and isfinite(self.gain(known)) else self._measured_dense()
        best = self.gain(self.dense)
        self.floor = best - self.bound - _ROUNDING * max(abs(best), 1.0)
        if not isfinite(self.floor):
            raise LrzipError(f"The {self.bench.scorer.first} of the dense network on the validation set is no number.")

    def gain(self, trial: Trial) -> float:
        """Return the first metric, negated if lower is better."""
        return self.bench.gain(trial.scores)

    def shortfall(self, trial: Trial) -> float:
        """Return by how much a network misses the bound, in the metric's unit; negative if it is within."""
        return self.floor - self.gain(trial)

    def attempt(self, origin: Trial, action: Mapping[str, Any], build: Build | None, settings: Settings) -> Trial:
        """Build a network from the weights of another one, tune it, and return the result.

        Args:
            origin: The network whose weights are used; its factors are merged into dense weights first.
            action: Description of what `build` does. It is part of the key: another value is another network.
            build: Builds the network; None continues to tune the origin.
            settings: Settings of tuning.

        Raises:
            Interrupted: The user interrupted tuning.
        """
        key = key_of(origin.key, action, asdict(settings))

        def compute() -> Mapping[str, Tensor]:
            return self._compute(key, origin, action, build, settings)

        self._recompute[key] = compute
        trial = self._known(key)
        if trial is None:
            compute()
            trial = self._known(key)
            assert trial, "it was stored"
        self._twins[origin.key, key_of(trial.ranks, asdict(settings))] = trial.key
        if all(trial.key != other.key for other in self.history):
            self.history.append(trial)
            if self.callbacks.decided:
                self.callbacks.decided(trial)
        return trial

    def variants_of(self, trial: Trial) -> Variants:
        """Return the variants of the dense network into which the factors of a trial's network are merged."""
        if self._latest[0] != trial.key:
            self._latest = trial.key, self.variants.with_weights(self.variants.dense(self.state(trial)))
        return self._latest[1]

    def state(self, trial: Trial) -> Mapping[str, Tensor]:
        """Return the state_dict of a network at its best; it is computed again if it is no longer stored."""
        if trial.key == self._root:
            return tensors_of(self.variants.model)
        stored = self._stored_state(trial)
        return stored if stored is not None else self._recompute[trial.key]()

    def has_state(self, trial: Trial) -> bool:
        """Return whether the state of a network is stored."""
        return self._stored_state(trial) is not None

    def note(
        self,
        trial: Trial,
        question: Mapping[str, Any],
        compute: Callable[[Variants], Mapping[str, Any]],
        read: Callable[[Record], T],
    ) -> T:
        """Return the stored result of a function of the variants of a network, computed on the first call.

        Args:
            trial: The network.
            question: Description of what `compute` computes, part of the key.
            compute: Returns a document that JSON can hold.
            read: Returns the document in its final type; one that it refuses is computed again.
        """
        key = key_of(trial.key, question)
        found = self.results.get(key, read)
        if found is None:
            self.results.put(key, {"from": trial.key, "what": dict(question), **compute(self.variants_of(trial))})
            found = self.results.get(key, read)
            assert found is not None, "it was stored"
        return found

    def keep(self, *trials: Trial) -> None:
        """Delete the stored states of all other networks.

        Nothing is deleted while a resumed search only repeats stored trials, since later ones may need these states.
        """
        if self._computed:
            self.states.keep(*(trial.key for trial in trials))

    def _root_key(self) -> str:
        names = [candidate.layer.name for candidate in self.variants.candidates]
        data = self.bench.identity if self.results.lasting else ""
        digest = network_digest(self.variants.model)
        calibration = None if self.variants.samples is None else self.variants.calibration
        return key_of(digest, data, names, asdict(self.variants.factoring), calibration)

    def _compute(
        self, key: str, origin: Trial, action: Mapping[str, Any], build: Build | None, settings: Settings
    ) -> Mapping[str, Tensor]:
        if self.callbacks.announce:
            self.callbacks.announce(", ".join(f"{name} {value}" for name, value in action.items()))
        made = build(self.variants_of(origin)) if build else self.variants.rebuilt(self.state(origin), origin.ranks)
        twin = self._twins.get((origin.key, key_of(made.ranks, asdict(settings)))) if build else None
        if twin not in (None, key):
            self.results.put(key, {"from": origin.key, "what": dict(action), "same": twin})
            return {}  # an earlier trial had the same ranks and settings; its results and state are used
        size = self.variants.parameters(made.ranks)
        trial = Trial(key, dict(action), made.ranks, size, origin.scores, origin.scores, NOT_SMALLER)
        if build and trial.parameters >= origin.parameters:
            self._store(trial, origin)
            return tensors_of(made.network)
        outcome = self.bench.tune(made.network, settings, self.callbacks.watch)
        if outcome.stopped == "interrupted":
            raise Interrupted
        self.states.put(key, outcome.state)
        self._computed = True
        before, best = outcome.epochs[0].scores, outcome.best.scores
        trial = replace(trial, before=before, scores=best, stopped=outcome.stopped, seconds=outcome.seconds)
        self._store(trial, origin)
        return outcome.state

    def _measured_dense(self) -> Trial:
        scores = self.bench.score(self.variants.model)
        dense = Trial(self._root, {"dense": True}, {}, self.variants.parameters({}), scores, scores)
        self._store(dense, None)
        return self._judged(dense)

    def _store(self, trial: Trial, origin: Trial | None) -> None:
        if self._known(trial.key) is not None:
            return  # only its state was computed again
        document = self._judged(trial).to_dict()
        self.results.put(trial.key, {"from": origin.key if origin else None, **document})

    def _known(self, key: str) -> Trial | None:
        """Return the stored trial of a key, or of an earlier key that it refers to; None if it has to be computed."""
        visited: set[str] = set()
        while (same := self.results.get(key, _reference)) is not None and key not in visited:
            visited.add(key)
            key = same
        trial = self.results.get(key, Trial.read)
        fits = trial is not None and self._fits(trial)
        return self._judged(trial) if trial is not None and fits else None

    def _fits(self, trial: Trial) -> bool:
        """Return whether a stored trial is one of these variants and metrics."""
        most = {item.layer.name: item.max_ranks for item in self.variants.candidates}
        within = all(
            len(ranks) == len(most.get(name, ())) and all(a <= b for a, b in zip(ranks, most[name], strict=True))
            for name, ranks in trial.ranks.items()
        )
        measured = trial.before.keys() == trial.scores.keys() == self.bench.scorer.metrics.keys()
        return within and measured and trial.parameters == self.variants.parameters(trial.ranks)

    def _stored_state(self, trial: Trial) -> Mapping[str, Tensor] | None:
        state = self.states.get(trial.key)
        return state if state is not None and self.variants.fits(state, trial.ranks) else None

    def _judged(self, trial: Trial) -> Trial:
        within = trial.stopped != NOT_SMALLER and self.gain(trial) >= self.floor
        return replace(trial, within=within)


def _reference(document: Record) -> str | None:
    return document.find("same", text)
