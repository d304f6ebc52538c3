from math import inf, sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.certificate import excess, interlacing_bound, ritz_bound, ritz_gap, squared_residual
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
def test_lower_bounds_never_exceed_the_optimum(spectrum: str, power_iterations: int) -> None:
    values, rank = SPECTRA[spectrum](80), 15
    matrix = with_spectrum((120, 80), values, dtype=torch.float64)
    optimum = float(values[rank:].square().sum())
    for seed in range(10):
        generator = Generator().manual_seed(seed)
        basis = subspace_iteration(matrix, 25, power_iterations=power_iterations, generator=generator)
        _, s, vh = direct_svd(matrix, basis)
        assert interlacing_bound(s, rank) <= optimum * (1 + 1e-12) + 1e-28
        assert ritz_bound(matrix, vh[:rank].mT) <= optimum * (1 + 1e-12) + 1e-12


def test_each_lower_bound_is_sharp_for_its_kind_of_spectrum() -> None:
    generator = Generator().manual_seed(0)
    steep = with_spectrum((120, 80), fast(80), dtype=torch.float64)
    s = direct_svd(steep, subspace_iteration(steep, 40, power_iterations=1, generator=generator))[1]
    assert interlacing_bound(s, 10) >= 0.999 * float(fast(80)[10:].square().sum())
    flat = with_spectrum((120, 80), slow(80), dtype=torch.float64)
    vh = direct_svd(flat, subspace_iteration(flat, 40, power_iterations=30, generator=generator))[2]
    assert ritz_bound(flat, vh[:10].mT) >= 0.999 * float(slow(80)[10:].square().sum())
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
        assert missed <= ritz_gap(t, residual.mT @ residual, rest, 15) + 1e-12 * float(exact[0])


def test_the_gap_is_quadratic_in_the_residuals_and_needs_a_small_complement() -> None:
    matrix = with_spectrum((120, 80), slow(80), dtype=torch.float64)
    g, generator = matrix.mT @ matrix, Generator().manual_seed(0)
    t, residual, rest = parts(g, subspace_iteration(matrix.mT, 25, power_iterations=12, generator=generator))
    values, vectors = torch.linalg.eigh(t)
    first = float(torch.linalg.vector_norm(residual @ vectors[:, -15:], dim=0).sum())
    missed = float(slow(80).double()[:15].square().sum() - values[-15:].sum())
    assert missed <= ritz_gap(t, residual.mT @ residual, rest, 15) <= min(20 * missed, first / 10)
    assert ritz_gap(t, residual.mT @ residual, float(values[-15]), 15) == inf


def parts(g: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return T, F and ‖C‖₂ of an operator G in a basis."""
    t = basis.mT @ g @ basis
    complement = torch.eye(len(g), dtype=g.dtype) - basis @ basis.mT
    return t, g @ basis - basis @ t, float(torch.linalg.matrix_norm(complement @ g @ complement, ord=2))


def test_excess_compares_errors_above_the_floor() -> None:
    assert excess(1.21, 1.0, 1e-12) == pytest.approx(0.1)
    assert excess(1e-13, 0.0, 1e-12) == 0
    assert excess(4e-12, -1.0, 1e-12) == pytest.approx(sqrt(4) - 1)
