from math import inf, sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.certificate import (
    excess,
    interlacing_bound,
    ritz_gap,
    squared_residual,
    stored_excess,
)
from lrzip.linalg.blocks.direct import direct_svd
from lrzip.linalg.blocks.rangefinder import subspace_iteration
from tests.support.matrices import SPECTRA, fast, slow, with_spectrum


def test_squared_residual_is_that_of_the_product() -> None:
    matrix, generator = with_spectrum((600, 40), slow(40)), Generator().manual_seed(0)
    left, right = torch.randn(600, 5, generator=generator), torch.randn(5, 40, generator=generator)
    expected = float(torch.linalg.matrix_norm(matrix.double() - left.double() @ right.double())) ** 2
    assert squared_residual(matrix, left, right) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("power_iterations", [0, 2, 10])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_interlacing_never_exceeds_the_optimum(spectrum: str, power_iterations: int) -> None:
    values, rank = SPECTRA[spectrum](80), 15
    matrix = with_spectrum((120, 80), values, dtype=torch.float64)
    optimum = float(values[rank:].square().sum())
    for seed in range(10):
        generator = Generator().manual_seed(seed)
        basis = subspace_iteration(matrix, 25, power_iterations=power_iterations, generator=generator)
        s = direct_svd(matrix, basis)[1]
        assert interlacing_bound(s, rank) <= optimum
        assert interlacing_bound(s[:rank], rank) == 0


def test_interlacing_is_sharp_for_fast_decay() -> None:
    generator = Generator().manual_seed(0)
    steep = with_spectrum((120, 80), fast(80), dtype=torch.float64)
    s = direct_svd(steep, subspace_iteration(steep, 40, power_iterations=1, generator=generator))[1]
    assert interlacing_bound(s, 10) >= 0.999 * float(fast(80)[10:].square().sum())
    assert interlacing_bound(s, 10) < interlacing_bound(s, 9)


@pytest.mark.parametrize("iterations", [1, 3, 6])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_leading_ritz_values_miss_at_most_their_gap(spectrum: str, iterations: int) -> None:
    matrix = with_spectrum((120, 80), SPECTRA[spectrum](80), dtype=torch.float64)
    g, exact = matrix.mT @ matrix, SPECTRA[spectrum](80).double().square()
    for seed in range(10):
        generator = Generator().manual_seed(seed)
        basis = subspace_iteration(matrix.mT, 25, power_iterations=iterations, generator=generator)
        t, residual, rest = parts(g, basis)
        missed = float(exact[:15].sum() - torch.linalg.eigvalsh(t)[-15:].sum())
        for norm in (rest, 1.5 * rest, float(exact[0])):  # any upper bound on the norm of the complement will do
            assert missed <= ritz_gap(t, root_of(residual), norm, 15, size=80) + 1e-12 * float(exact[0])
            assert missed <= ritz_gap(t, 0 * root_of(residual), norm, 15, size=80) + norm * 15 + 1e-12


def test_the_gap_is_attained_by_some_operator() -> None:
    """With C = ‖C‖ I nothing is left to bound: the gap is exact."""
    generator = Generator().manual_seed(0)
    t = torch.diag(torch.linspace(1.3, 0.9, 6, dtype=torch.float64))
    f = 0.1 * torch.randn(14, 6, generator=generator, dtype=torch.float64)
    for rest in (0.2, 1.0, 1.2):
        g = torch.cat([torch.cat([t, f.mT], 1), torch.cat([f, rest * torch.eye(14, dtype=torch.float64)], 1)])
        missed = float(torch.linalg.eigvalsh(g)[-4:].sum() - t.diagonal()[:4].sum())
        assert ritz_gap(t, root_of(f), rest, 4, size=20) == pytest.approx(missed, rel=1e-9)


def test_the_gap_counts_directions_that_nothing_couples() -> None:
    """A residual of rank 1, as those of a Krylov space with a narrow block, leaves a complement of any dimension."""
    t, f = torch.diag(torch.linspace(1.3, 0.9, 6, dtype=torch.float64)), torch.zeros(14, 6, dtype=torch.float64)
    f[0, 5] = 0.1
    g = torch.cat([torch.cat([t, f.mT], 1), torch.cat([f, 1.2 * torch.eye(14, dtype=torch.float64)], 1)])
    missed = float(torch.linalg.eigvalsh(g)[-4:].sum() - t.diagonal()[:4].sum())
    assert ritz_gap(t, f[:1], 1.2, 4, size=20) == pytest.approx(missed, rel=1e-9)


def test_the_gap_is_quadratic_in_the_residuals_where_the_complement_is_small() -> None:
    matrix = with_spectrum((120, 80), slow(80), dtype=torch.float64)
    g, generator = matrix.mT @ matrix, Generator().manual_seed(0)
    t, residual, rest = parts(g, subspace_iteration(matrix.mT, 25, power_iterations=12, generator=generator))
    values, vectors = torch.linalg.eigh(t)
    first = float(torch.linalg.vector_norm(residual @ vectors[:, -15:], dim=0).sum())
    missed = float(slow(80).double()[:15].square().sum() - values[-15:].sum())
    assert missed <= ritz_gap(t, root_of(residual), rest, 15, size=80) <= min(20 * missed, first / 10)
    assert ritz_gap(t, root_of(residual), float(values[-8]), 15, size=80) >= float((values[-8] - values[-15:-8]).sum())
    assert ritz_gap(t, root_of(residual), inf, 15, size=80) == inf


def root_of(residual: Tensor) -> Tensor:
    """Return R with RᵀR = FᵀF."""
    root: Tensor = torch.linalg.qr(residual, mode="r").R
    return root


def parts(g: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return T, F and ‖C‖₂ of an operator G in a basis."""
    t = basis.mT @ g @ basis
    complement = torch.eye(len(g), dtype=g.dtype) - basis @ basis.mT
    return t, g @ basis - basis @ t, float(torch.linalg.matrix_norm(complement @ g @ complement, ord=2))


def test_excess_compares_errors_above_the_floor() -> None:
    assert excess(1.21, 1.0, 1e-12) == pytest.approx(0.1)
    assert excess(1e-13, 0.0, 1e-12) == 0
    assert excess(4e-12, -1.0, 1e-12) == pytest.approx(sqrt(4) - 1)


def test_the_excess_of_stored_factors_contains_their_rounding() -> None:
    assert stored_excess(None, 1.21, 1.0, 1e-12) is None
    assert stored_excess(1e-3, 1.21, 1.0, 1e-12) == pytest.approx(0.1)
    assert stored_excess(1e-3, 1.0, 1.0, 1e-12) == 1e-3
    assert stored_excess(0.0, 1e-13, 0.0, 1e-12) == 0
    assert stored_excess(0.0, 4e-12, 0.0, 1e-12) is None, "no error is known to be the least"
