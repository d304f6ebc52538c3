"""Networks that are tried: factorized, tuned and measured, each once."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrzip.core.errors import LrzipError
from lrzip.core.numbers import finite
from lrzip.formats.files.atomic import atomic_file
from lrzip.search.variants import Ranks, Variants
from lrzip.training.bench import Bench
from lrzip.training.cache import Cache, key_of, network_digest
from lrzip.training.outcomes import StepCallback
from lrzip.training.settings import Settings

Build = Callable[[Variants], nn.Module]
"""Makes a factorized network of the forms of a whole one."""


# Metrics come as float32; one that meets the bound exactly must count as met.
_ROUNDING = 1e-6
NOT_SMALLER = "not smaller"


class Interrupted(Exception):
    """Someone asked to stop."""


@dataclass(frozen=True)
class Trial:
    """A network that was tried.

    Attributes:
        key: A digest of all that made it.
        what: Was done to the one before it.
        ranks: Of its factorized layers.
        parameters: Of the whole network.
        before: Metrics before it was tuned.
        scores: Metrics at its best.
        stopped: As `Outcome.stopped`, or `not smaller` where it was not worth a training.
        seconds: It took.
        within: Whether its metric is within the bound.
    """

    key: str
    what: Mapping[str, Any]
    ranks: Ranks
    parameters: int
    before: Mapping[str, float]
    scores: Mapping[str, float]
    stopped: str = "finished"
    seconds: float = 0.0
    within: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as logs and `--json` have it."""
        return {
            "what": dict(self.what),
            "parameters": self.parameters,
            "before": {name: finite(value) for name, value in self.before.items()},
            "scores": {name: finite(value) for name, value in self.scores.items()},
            "within": self.within,
            "stopped": self.stopped,
            "ranks": dict(self.ranks),
            "seconds": round(self.seconds, 3),
        }


class States:
    """States of networks by key: in memory, or in a folder, where they outlive the process."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[str, Mapping[str, Tensor]] = {}

    def put(self, key: str, state: Mapping[str, Tensor]) -> None:
        """Keep a state."""
        if self._folder is None:
            self._held[key] = state
            return
        try:
            self._folder.mkdir(exist_ok=True)
            with atomic_file(self._path(key)) as temporary:
                torch.save(dict(state), temporary)
        except OSError as error:
            raise LrzipError(f"Could not write `{self._folder}`: {error.strerror}.") from error

    def get(self, key: str) -> Mapping[str, Tensor] | None:
        """Return a state, or None where it is not kept or cannot be read any more."""
        if self._folder is None:
            return self._held.get(key)
        try:
            state: Mapping[str, Tensor] = torch.load(self._path(key), map_location="cpu", weights_only=True)
        except Exception:  # torch.load raises anything on a file that was cut short; the state is made again then
            return None
        return state

    def keep(self, *keys: str) -> None:
        """Forget all other states."""
        self._held = {key: state for key, state in self._held.items() if key in keys}
        if self._folder is not None and self._folder.is_dir():
            for path in self._folder.glob("*.pt"):
                if path.stem not in keys:
                    path.unlink()

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{key}.pt"


@dataclass
class Trials:
    """Tries networks, one made from another, and knows which ones are within the bound.

    Each is made, tuned and measured in the same way every time, so that what was tried before need not be again: its
    result is found by what made it, and its state, should it be gone, can be made again.

    Attributes:
        bench: Tunes and measures.
        variants: Of the dense network.
        results: What is known, with its file.
        states: Of the networks that may be gone on from.
        bound: By how much the metric may get worse, in its own unit.
        announce: Called before a training, with what is done.
        watch: Called after each of its steps.
        decided: Called with each network that was tried.
        tried: All of them, in order.
    """

    bench: Bench
    variants: Variants
    results: Cache
    states: States
    bound: float
    announce: Callable[[str], None] | None = None
    watch: StepCallback | None = None
    decided: Callable[[Trial], None] | None = None
    tried: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [candidate.layer.name for candidate in self.variants.candidates]
        digest, calibrated = network_digest(self.variants.model), self.variants.examples is not None
        data = self.bench.identity if self.results.lasting else ""
        self._begin = key_of(digest, data, names, dict(self.variants.options), calibrated)
        self._again: dict[str, Callable[[], Mapping[str, Tensor]]] = {}
        self._fresh = False
        self._twins: dict[tuple[str, str], str] = {}
        self._latest: tuple[str, Variants] = self._begin, self.variants
        self.floor = -inf
        if self.results.get(self._begin) is None:
            scores = self.bench.score(self.variants.model)
            whole = Trial(self._begin, {"dense": True}, {}, self.variants.parameters({}), scores, scores)
            self._put(whole, None)
        self.dense = self._known(self._begin)
        best = self.gain(self.dense)
        self.floor = best - self.bound - _ROUNDING * max(abs(best), 1.0)
        if not isfinite(self.floor):
            raise LrzipError(f"The {self.bench.scorer.first} of the dense network on the validation set is no number.")

    def gain(self, tried: Trial) -> float:
        """Return the metric that counts so that more is better."""
        return self.bench.gain(tried.scores)

    def shortfall(self, tried: Trial) -> float:
        """Return by how much a network misses the bound, in the metric's unit; negative where it is within."""
        return self.floor - self.gain(tried)

    def attempt(self, origin: Trial, what: Mapping[str, Any], build: Build | None, settings: Settings) -> Trial:
        """Return what comes of a network that is made from another one's weights and tuned.

        Args:
            origin: Where the weights come from; factors are multiplied back first.
            what: Says for people and for the log what `build` does, so that another value means another network.
            build: Makes the network; None goes on with the origin as it is.
            settings: How to tune it.

        Raises:
            Interrupted: Someone asked to stop.
        """
        key = key_of(origin.key, what, asdict(settings))

        def compute() -> Mapping[str, Tensor]:
            return self._compute(key, origin, what, build, settings)

        self._again[key] = compute
        if self.results.get(key) is None:
            compute()
        tried = self._known(key)
        self._twins[origin.key, key_of(tried.ranks, asdict(settings))] = tried.key
        if all(tried.key != other.key for other in self.tried):
            self.tried.append(tried)
            if self.decided:
                self.decided(tried)
        return tried

    def variants_of(self, tried: Trial) -> Variants:
        """Return the forms of what a network computes, multiplied back."""
        if self._latest[0] != tried.key:
            self._latest = tried.key, self.variants.with_weights(self.variants.dense(self.state(tried)))
        return self._latest[1]

    def state(self, tried: Trial) -> Mapping[str, Tensor]:
        """Return the state of a network at its best."""
        if tried.key == self._begin:
            return self.variants.model.state_dict()
        kept = self.states.get(tried.key)
        return kept if kept is not None else self._again[tried.key]()

    def note(self, tried: Trial, what: Mapping[str, Any], compute: Callable[[Variants], Mapping[str, Any]]) -> Any:
        """Return what a function says of the forms of a network, which is then known and need not be asked again."""
        key = key_of(tried.key, what)
        if self.results.get(key) is None:
            self.results.put(key, {"from": tried.key, "what": dict(what), **compute(self.variants_of(tried))})
        return self.results.get(key)

    def keep(self, *tried: Trial) -> None:
        """Forget the states of all other networks, unless all this was known: then later states are still needed."""
        if self._fresh:
            self.states.keep(*(one.key for one in tried))

    def _compute(
        self, key: str, origin: Trial, what: Mapping[str, Any], build: Build | None, settings: Settings
    ) -> Mapping[str, Tensor]:
        if self.announce:
            self.announce(", ".join(f"{name} {value}" for name, value in what.items()))
        network = build(self.variants_of(origin)) if build else self.variants.built(self.state(origin))
        ranks = self.variants.ranks(network.state_dict())
        twin = self._twins.get((origin.key, key_of(ranks, asdict(settings)))) if build else None
        if twin not in (None, key):
            self.results.put(key, {"from": origin.key, "what": dict(what), "same": twin})
            return {}  # what is known of the twin stands for it
        tried = Trial(
            key, dict(what), ranks, self.variants.parameters(ranks), origin.scores, origin.scores, NOT_SMALLER
        )
        if build and tried.parameters >= origin.parameters:
            self._put(tried, origin)
            return network.state_dict()
        outcome = self.bench.tune(network, settings, self.watch)
        if outcome.stopped == "interrupted":
            raise Interrupted
        self.states.put(key, outcome.state)
        self._fresh = True
        before, best = outcome.epochs[0].scores, outcome.best.scores
        tried = replace(tried, before=before, scores=best, stopped=outcome.stopped, seconds=outcome.seconds)
        self._put(tried, origin)
        return outcome.state

    def _put(self, tried: Trial, origin: Trial | None) -> None:
        if self.results.get(tried.key) is not None:
            return  # it was made again for its state
        document = replace(tried, within=self._within(tried)).to_dict()
        self.results.put(tried.key, {"from": origin.key if origin else None, **document})

    def _known(self, key: str) -> Trial:
        document = self.results.get(key)
        assert document, "it was just put there"
        if "same" in document:
            return self._known(document["same"])
        names = ("what", "ranks", "parameters", "before", "scores", "stopped", "seconds")
        found = {name: document[name] for name in names}
        for part in ("before", "scores"):
            found[part] = {name: nan if value is None else value for name, value in found[part].items()}
        tried = Trial(key, **found)
        return replace(tried, within=self._within(tried))

    def _within(self, tried: Trial) -> bool:
        return tried.stopped != NOT_SMALLER and self.gain(tried) >= self.floor
