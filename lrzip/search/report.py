"""The result of a compression within a bound."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from lrzip.core.numbers import finite
from lrzip.core.report import Report
from lrzip.search.strategies import manner_of
from lrzip.search.trial import Trial
from lrzip.search.trials import Trials


@dataclass(frozen=True)
class SearchReport:
    """The result of a compression within a bound on the metric.

    Attributes:
        report: Report of the output that was written. It has no errors of layers, since tuned factors no longer
            approximate the original weights.
        strategy: Name of the strategy.
        max_drop: The bound, as requested.
        metric: Name of the metric that the bound is on.
        higher_is_better: Whether larger values of that metric are better.
        unit: Change of the metric that counts as a drop of 1.
        drop: Loss of the metric on the validation set, in the units of `max_drop`.
        dense: The dense network.
        best: The network that was written.
        trials: All trials, in order.
        sample_counts: Numbers of samples of the training and of the validation set.
        test: Metrics on test data of the dense network and of the one that was written, if there is test data.
        interrupted: Whether the user interrupted the search.
        log: The log file, if there is one.
    """

    report: Report
    strategy: str
    max_drop: float
    metric: str
    higher_is_better: bool
    unit: float
    drop: float
    dense: Trial
    best: Trial
    trials: Sequence[Trial]
    sample_counts: tuple[int, int]
    test: tuple[Mapping[str, float], Mapping[str, float]] | None = None
    interrupted: bool = False
    log: Path | None = None

    @property
    def standard_error(self) -> float | None:
        """The standard error of the metric after compression, in the units of `max_drop`; None unless it is a share.

        It is that of a binomial proportion, √(p (1 - p) / n). It is estimated from the samples that also selected the
        network, for which the proportion is biased upwards.
        """
        if self.unit == 1:
            return None
        share = self.best.scores[self.metric]
        return sqrt(share * (1 - share) / self.sample_counts[1]) / self.unit

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `--json` prints."""
        test = {"before": _finite(self.test[0]), "after": _finite(self.test[1])} if self.test else None
        return self.report.to_dict() | {
            "search": {
                "strategy": self.strategy,
                "max_drop": self.max_drop,
                "manner": manner_of(self.max_drop * self.unit * 100),
                "metric": self.metric,
                "drop": self.drop,
                "standard_error": self.standard_error,
                "before": _finite(self.dense.scores),
                "after": _finite(self.best.scores),
                "test": test,
                "train_examples": self.sample_counts[0],
                "val_examples": self.sample_counts[1],
                "interrupted": self.interrupted,
                "tried": [trial.to_dict() for trial in self.trials],
            }
        }


def search_report(trials: Trials, best: Trial, report: Report, strategy: str, max_drop: float) -> SearchReport:
    """Return the report of a search that was not interrupted, without test data.

    Args:
        trials: All trials.
        best: The network that was written.
        report: The report of what was written.
        strategy: Name of the strategy.
        max_drop: The bound, as requested.
    """
    bench = trials.bench
    return SearchReport(
        report=report,
        strategy=strategy,
        max_drop=max_drop,
        metric=bench.scorer.first,
        higher_is_better=bench.scorer.higher_is_better,
        unit=bench.unit,
        drop=(trials.gain(trials.dense) - trials.gain(best)) / bench.unit,
        dense=trials.dense,
        best=best,
        trials=trials.history,
        sample_counts=(len(bench.train), len(bench.val)),
    )


def _finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: finite(value) for name, value in scores.items()}
