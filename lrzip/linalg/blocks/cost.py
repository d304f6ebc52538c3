"""What decompositions cost on a device, to choose between them without trying.

Only ratios matter. `python -m tests.benchmarks.fit_costs` measures primitives and prints the rates of a device.
"""

from dataclasses import dataclass

from lrzip.linalg.blocks.lanczos import block_size, expected_dimension

# Of the products of a Gram matrix, what symmetry leaves to compute.
GRAM_SHARE = 0.56
# Trained weights need a Krylov space that is larger than the one first looked at by so much.
_GROWTH = 1.7


@dataclass(frozen=True)
class Rates:
    """Seconds that float32 primitives take.

    Attributes:
        product: Of one floating-point operation in a product of large matrices.
        eigh_cubic: Of a symmetric eigendecomposition, per n³ …
        eigh_square: … and per n².
        step: Of one block step of Lanczos beyond its products: small factorizations and calls.
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


# Fitted by it on two cores of an AMD EPYC (Zen 4), torch 2.13.0+cpu.
_CPU = Rates(product=5.4e-12, eigh_cubic=4.3e-11, eigh_square=3.5e-8, step=1.2e-3)
# Not fitted but estimated from published speeds of an H100: `fit_costs --device cuda` has not been run on one.
_CUDA = Rates(product=2.5e-14, eigh_cubic=1.5e-11, eigh_square=2e-8, step=1e-3)


def rates(device_type: str) -> Rates:
    """Return the rates of a kind of device, `cpu` or `cuda`."""
    return _CUDA if device_type == "cuda" else _CPU


def prefers_partial(n: int, rank: int, device_type: str) -> bool:
    """Tell whether the leading eigenpairs cost less by Lanczos than by a full eigendecomposition."""
    costs = rates(device_type)
    return expected_dimension(rank) * _GROWTH < n and costs.lanczos(n, rank) < costs.eigh(n)


def prefers_gram(m: int, n: int, rank: int) -> bool:
    """Tell whether Lanczos for an m × n matrix costs less with its Gram matrix than with the matrix twice."""
    size = _GROWTH * expected_dimension(rank)
    return GRAM_SHARE * 2 * m * n**2 + 2 * n**2 * size < 4 * m * n * size
