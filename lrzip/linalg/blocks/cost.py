"""Cost model of eigendecompositions, to choose a method without running it.

Only ratios matter. `python -m tests.benchmarks.fit_costs` measures the primitives of a device and prints its rates.
"""

from dataclasses import dataclass

from lrzip.linalg.blocks.lanczos import block_size, expected_dimension

# Share of the products of a Gram matrix that remain when its symmetry is used.
GRAM_SHARE = 0.56
# Dimension of the Krylov space that trained weights need, relative to the dimension that is checked first.
_GROWTH = 1.7


@dataclass(frozen=True)
class Rates:
    """Time of float32 primitives, in seconds.

    Attributes:
        product: Time per floating-point operation in a product of large matrices.
        eigh_cubic: Time of a symmetric eigendecomposition per n³.
        eigh_square: Additional time of a symmetric eigendecomposition per n².
        step: Time of one block step of Lanczos apart from its products: small factorizations and calls.
    """

    product: float
    eigh_cubic: float
    eigh_square: float
    step: float

    def eigh(self, n: int) -> float:
        """Return the seconds of a full eigendecomposition of an n × n matrix."""
        return self.eigh_cubic * n**3 + self.eigh_square * n**2

    def lanczos(self, n: int, rank: int) -> float:
        """Return the seconds of the leading `rank` eigenpairs of an n × n matrix by block Lanczos."""
        size = _GROWTH * expected_dimension(rank)
        products = 2 * n**2 * size + 5 * n * size**2 + 2 * n * size * rank
        return self.product * products + self.eigh(int(size)) + self.step * size / block_size(rank)


# Fitted on two cores of an AMD EPYC (Zen 4), torch 2.13.0+cpu.
_CPU = Rates(product=5.4e-12, eigh_cubic=4.3e-11, eigh_square=3.5e-8, step=1.2e-3)
# Estimated from published speeds of an H100; not fitted, as `fit_costs --device cuda` has not been run on one.
_CUDA = Rates(product=2.5e-14, eigh_cubic=1.5e-11, eigh_square=2e-8, step=1e-3)


def rates(device_type: str) -> Rates:
    """Return the rates of a device type, `cpu` or `cuda`."""
    return _CUDA if device_type == "cuda" else _CPU


def prefers_partial(n: int, rank: int, device_type: str) -> bool:
    """Return whether Lanczos computes the leading eigenpairs faster than a full eigendecomposition."""
    costs = rates(device_type)
    return expected_dimension(rank) * _GROWTH < n and costs.lanczos(n, rank) < costs.eigh(n)


def prefers_gram(m: int, n: int, rank: int) -> bool:
    """Return whether Lanczos takes fewer operations with the Gram matrix of an m × n matrix than with the matrix.

    Per Krylov vector, these are 2 n² operations with the Gram matrix, which has to be computed first, and 4 m n with
    the matrix and its transpose.
    """
    size = _GROWTH * expected_dimension(rank)
    return GRAM_SHARE * 2 * m * n**2 + 2 * n**2 * size < 4 * m * n * size
