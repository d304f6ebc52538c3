"""What decompositions cost on a device, to choose between them without trying.

Only ratios matter. `tests/benchmarks/fit_costs.py` measures primitives and prints the rates of the machine it runs on.
"""

from dataclasses import dataclass

from lrzip.linalg.lanczos import block_size, expected_dimension

# Spectra that fall more slowly than σᵢ ∝ i^-½ need a larger Krylov space than the one first looked at.
_GROWTH = 1.15


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


# Fitted on two cores of an AMD EPYC (Zen 4), torch 2.13.0+cpu.
_CPU = Rates(product=5.3e-12, eigh_cubic=5.0e-11, eigh_square=2.6e-8, step=1e-3)
# Not fitted: what an H100 is published to do, until `fit_costs.py --device cuda` has run on one.
_CUDA = Rates(product=2.5e-14, eigh_cubic=1.5e-11, eigh_square=2e-8, step=1e-3)


def rates(device_type: str) -> Rates:
    """Return the rates of a kind of device, `cpu` or `cuda`."""
    return _CUDA if device_type == "cuda" else _CPU


def prefers_partial(n: int, rank: int, device_type: str) -> bool:
    """Tell whether the leading eigenpairs cost less by Lanczos than by a full eigendecomposition."""
    costs = rates(device_type)
    return expected_dimension(rank) * _GROWTH < n and costs.lanczos(n, rank) < costs.eigh(n)
