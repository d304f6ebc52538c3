"""The smallest network within the bound so far, written while a search goes on."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from lrzip.core.report import Report
from lrzip.search.trial import Trial
from lrzip.search.trials import Trials

# Part of the time of a search that may be spent on writing better networks than the first.
_SHARE = 0.1


@dataclass
class Best:
    """Writes the first network within the bound, and smaller ones as long as that takes little of the time.

    Attributes:
        trials: The trials of the search.
        write: Writes a network and returns the report.
        trial: The network that was written last, if any.
        report: Its report.
    """

    trials: Trials
    write: Callable[[Trial], Report]
    trial: Trial | None = None
    report: Report | None = None
    _ended: float = 0.0
    _seconds: float = 0.0

    def offer(self, trial: Trial) -> None:
        """Write a network that was just tried, if it is within the bound and the smallest so far."""
        is_smaller = self.trial is None or trial.parameters < self.trial.parameters
        waited = _SHARE * (perf_counter() - self._ended) >= self._seconds
        if trial.within and is_smaller and waited and self.trials.states.get(trial.key) is not None:
            self.put(trial)

    def put(self, trial: Trial) -> Report:
        """Write a network, unless it was the last one that was written, and return the report."""
        if self.report is None or self.trial is None or trial.key != self.trial.key:
            start = perf_counter()
            self.report, self.trial = self.write(trial), trial
            self._ended = perf_counter()
            self._seconds = self._ended - start
        return self.report

    def keep_smallest(self) -> Trial | None:
        """Write the smallest network within the bound whose state is stored, and return it; None if there is none."""
        within = [t for t in self.trials.history if t.within and self.trials.states.get(t.key) is not None]
        smallest = min(within, key=lambda trial: trial.parameters, default=self.trial)
        if smallest is not None:
            self.put(smallest)
        return smallest
