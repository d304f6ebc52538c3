"""One trial of a search: a compressed network that was built, tuned and measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Any

from lrzip.core.numbers import finite
from lrzip.search.variants import Ranks

NOT_SMALLER = "not smaller"
"""Value of `Trial.stopped` for a network that was not tuned because it is no smaller than the one it came from."""


@dataclass(frozen=True)
class Trial:
    """A network that was built from an earlier one, tuned and measured.

    Attributes:
        key: Digest of everything the network depends on.
        action: How it was built from the network before it.
        ranks: Ranks of its factorized layers.
        parameters: Number of parameters of the whole network.
        before: Metrics before tuning.
        scores: Metrics at its best, after tuning.
        stopped: Reason why tuning ended, as in `Outcome.stopped`, or `NOT_SMALLER`.
        seconds: Duration of tuning.
        within: Whether the first metric is within the bound.
    """

    key: str
    action: Mapping[str, Any]
    ranks: Ranks
    parameters: int
    before: Mapping[str, float]
    scores: Mapping[str, float]
    stopped: str = "finished"
    seconds: float = 0.0
    within: bool = True

    @classmethod
    def from_dict(cls, key: str, document: Mapping[str, Any]) -> "Trial":
        """Return the trial of a document that `to_dict` returned.

        Args:
            key: Key of the trial.
            document: The document; its other entries are ignored.
        """
        return cls(
            key,
            action=document["what"],
            ranks={name: _ranks(value) for name, value in document["ranks"].items()},
            parameters=document["parameters"],
            before=_scores(document["before"]),
            scores=_scores(document["scores"]),
            stopped=document["stopped"],
            seconds=document["seconds"],
            within=document["within"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the document of logs and of `--json`: one rank is written as an integer, several as a list."""
        return {
            "what": dict(self.action),
            "parameters": self.parameters,
            "before": {name: finite(value) for name, value in self.before.items()},
            "scores": {name: finite(value) for name, value in self.scores.items()},
            "within": self.within,
            "stopped": self.stopped,
            "ranks": {name: ranks_document(ranks) for name, ranks in self.ranks.items()},
            "seconds": round(self.seconds, 3),
        }


def ranks_document(ranks: tuple[int, ...]) -> int | list[int]:
    """Return the ranks of one layer as logs and `--json` write them: one rank is an integer, several are a list."""
    return ranks[0] if len(ranks) == 1 else list(ranks)


def _ranks(value: int | list[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _scores(document: Mapping[str, float | None]) -> dict[str, float]:
    return {name: nan if value is None else value for name, value in document.items()}
