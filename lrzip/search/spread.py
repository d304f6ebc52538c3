"""Mean, standard deviation and confidence interval of repeated measurements."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin, sqrt, tan
from statistics import fmean, stdev
from typing import Any

from lrzip.core.numbers import finite

CONFIDENCE = 0.95
# Halvings of the interval of angles: more than float64 can resolve.
_BISECTIONS = 100


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one quantity.

    Attributes:
        values: The measurements.
    """

    values: Sequence[float]

    @property
    def mean(self) -> float:
        """Their mean."""
        return fmean(self.values)

    @property
    def std(self) -> float | None:
        """Their standard deviation (n − 1); None for a single measurement."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def half_width(self) -> float | None:
        """Half the width of the 95 % confidence interval of the mean (Student's t); None for a single measurement."""
        count = len(self.values)
        return student_t(CONFIDENCE, count - 1) * stdev(self.values) / sqrt(count) if count > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `--json` prints."""
        numbers = {"mean": self.mean, "std": self.std, "ci95": self.half_width}
        return {"values": [finite(value) for value in self.values]} | {n: finite(v) for n, v in numbers.items()}


def student_t(confidence: float, freedom: int) -> float:
    """Return t such that a variable with Student's t-distribution lies within ±t with the given probability.

    The closed forms in θ = atan(t / √ν) of Abramowitz & Stegun, 26.7.3 and 26.7.4, are inverted by bisection.

    Args:
        confidence: The probability, between 0 and 1.
        freedom: Degrees of freedom ν, at least 1.
    """
    low, high = 0.0, pi / 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability_within(middle, freedom) < confidence else (low, middle)
    return tan(low) * sqrt(freedom)


def _probability_within(theta: float, freedom: int) -> float:
    odd = freedom % 2
    term, total = (cos(theta), cos(theta)) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= (k - 1) / k * cos(theta) ** 2
        total += term
    if not odd:
        return sin(theta) * total
    return 2 / pi * (theta + (sin(theta) * total if freedom > 1 else 0.0))
