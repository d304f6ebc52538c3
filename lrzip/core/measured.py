"""What was measured of a layer's ranks, beside what its singular values predict."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MeasuredChanges:
    """What became of a network's outputs when one layer alone had some ranks.

    Attributes:
        ranks: Ascending, below full rank.
        changes: For each the mean squared change of the outputs, over examples and elements.
    """

    ranks: tuple[int, ...]
    changes: tuple[float, ...]
