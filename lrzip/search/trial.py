"""One trial of a search: a compressed network that was built, tuned and measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Any

from lrzip.core.documents import Place, Record, each, flag, mapping, number, one_of, optional, text, whole
from lrzip.core.numbers import finite
from lrzip.search.variants import Ranks

NOT_SMALLER = "not smaller"
"""Value of `Trial.stopped` for a network that was not tuned because it is no smaller than the one it came from."""

_STOPPED = (NOT_SMALLER, "finished", "patience", "not finite")


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
    def read(cls, document: Record) -> "Trial":
        """Return the trial of a document that `to_dict` returned, with its key; other entries are ignored.

        Raises:
            LrzipError: A field is missing or of the wrong type.
        """
        return cls(
            document.read("key", text),
            action=document.read("what", mapping(_description)),
            ranks=document.read("ranks", mapping(_ranks)),
            parameters=document.read("parameters", whole(1)),
            before=document.read("before", mapping(_score)),
            scores=document.read("scores", mapping(_score)),
            stopped=document.read("stopped", one_of(_STOPPED)),
            seconds=document.read("seconds", number(0)),
            within=document.read("within", flag),
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


def _ranks(value: Any, place: Place) -> tuple[int, ...]:
    return (whole(1)(value, place),) if isinstance(value, int) else each(whole(1), least=1)(value, place)


def _description(value: Any, place: Place) -> Any:
    """Read a part of the description of an action: a string, a number, true, false, or a list of ranks."""
    if isinstance(value, str | bool):
        return value
    if isinstance(value, list):
        return list(each(whole())(value, place))
    number()(value, place)
    return value


def _score(value: Any, place: Place) -> float:
    score = optional(number())(value, place)
    return nan if score is None else score
