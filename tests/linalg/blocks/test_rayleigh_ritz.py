import pytest
import torch
from torch import Generator

from lrzip.linalg.blocks.rangefinder import subspace_iteration
from lrzip.linalg.blocks.rayleigh_ritz import rayleigh_ritz
from tests.support.matrices import SPECTRA, slow, with_spectrum


@pytest.mark.parametrize("iterations", [0, 2, 10])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_least_error_never_exceeds_the_optimum(spectrum: str, iterations: int) -> None:
    values, rank = SPECTRA[spectrum](80), 10
    matrix = with_spectrum((120, 80), values, dtype=torch.float64)
    optimum = float(values[rank:].square().sum())
    for seed in range(10):
        generator = Generator().manual_seed(seed)
        basis = subspace_iteration(matrix.mT, rank + seed, power_iterations=iterations, generator=generator)
        found = rayleigh_ritz(matrix, basis, rank, generator)
        assert found.least <= optimum
        assert found.energy == pytest.approx(float(values.square().sum()), rel=1e-12)


def test_the_least_error_is_sharp_where_the_subspace_has_converged() -> None:
    matrix, generator = with_spectrum((120, 80), slow(80), dtype=torch.float64), Generator().manual_seed(0)
    basis = subspace_iteration(matrix.mT, 40, power_iterations=30, generator=generator)
    assert rayleigh_ritz(matrix, basis, 10, generator).least >= 0.999 * float(slow(80)[10:].square().sum())


def test_the_slack_allows_for_what_random_vectors_overlook() -> None:
    # All eigenvalues are 1, so that nothing is missed. An estimate of the norm of the complement proves no more than
    # that it is at most some percent larger.
    matrix, generator = with_spectrum((120, 80), torch.ones(80), dtype=torch.float64), Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(80, 20, generator=generator, dtype=torch.float64)).Q
    assert 0.01 < rayleigh_ritz(matrix, basis, 10, generator).slack < 0.3


def test_ritz_pairs_are_those_of_the_subspace() -> None:
    matrix, generator = with_spectrum((120, 80), slow(80), dtype=torch.float64), Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(80, 20, generator=generator, dtype=torch.float64)).Q
    found = rayleigh_ritz(matrix, basis, 7, generator)
    vectors = basis @ found.rotation
    torch.testing.assert_close(found.images, matrix.mT @ (matrix @ basis))
    torch.testing.assert_close((matrix @ vectors).square().sum(0), found.squares)
    torch.testing.assert_close(found.squares, torch.linalg.svdvals(matrix @ basis)[:7].square())
