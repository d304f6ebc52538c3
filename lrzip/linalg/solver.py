"""Settings and result of the truncated SVD."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Solver:
    """Method of truncated SVDs and its parameters.

    Attributes:
        method: One of `lrzip.linalg.svd.METHODS`.
        oversample: Sketch vectors beyond the rank (Halko, Martinsson & Tropp 2011, section 4.2: 5 to 10).
        power_iterations: Applications of A Aᵀ to the sketch.
        tolerance: Largest relative excess of the error over the optimal error. Infinite leaves sketches unchecked.
    """

    method: str = "auto"
    oversample: int = 10
    power_iterations: int = 2
    tolerance: float = 1e-3


@dataclass(frozen=True)
class TruncatedSVD:
    """The leading singular triplets of a matrix (m, n).

    Attributes:
        u: (m, rank), orthonormal to 1e-4.
        s: (rank,), descending.
        vh: (rank, n), orthonormal to 1e-4. Of u and vh, the basis of the smaller side, which is computed first, is
            orthonormal to rounding.
        method: Method that computed them.
        excess: Bound on ‖A − u s vh‖_F over the optimal error, minus 1; None if it was not checked. Errors below
            20 eps ‖A‖_F count as 0.
        least: Lower bound on the squared optimal error.
    """

    u: Tensor
    s: Tensor
    vh: Tensor
    method: str
    excess: float | None
    least: float = 0.0
