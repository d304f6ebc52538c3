from math import inf
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.sketched_svd import SKETCHES, sketched_svd
from lrzip.linalg.solver import Solver, TruncatedSVD
from tests.support.matrices import SPECTRA, fast, slow, with_spectrum


def svd(matrix: Tensor, rank: int, method: str, seed: int = 0, **options: Any) -> TruncatedSVD:
    return sketched_svd(matrix, rank, Solver(method, **options), Generator().manual_seed(seed))


def error_of(matrix: Tensor, found: TruncatedSVD) -> float:
    return float(torch.linalg.matrix_norm(matrix.double() - (found.u.double() * found.s) @ found.vh.double()))


@pytest.mark.parametrize("method", SKETCHES)
def test_a_sketch_that_misses_the_tolerance_is_replaced(method: str) -> None:
    matrix = with_spectrum((300, 200), slow(200))
    optimum = float(torch.linalg.vector_norm(slow(200)[20:]))
    unchecked = svd(matrix, 20, method, tolerance=inf)
    assert (unchecked.method, unchecked.excess) == (method, None)
    assert error_of(matrix, unchecked) > 1.002 * optimum  # the premise of the next lines
    checked = svd(matrix, 20, method)
    assert checked.method == f"{method}, then gram"
    assert error_of(matrix, checked) <= 1.001 * optimum
    assert svd(matrix, 20, method, tolerance=5.0).method == method


@pytest.mark.parametrize("method", ["randomized", "subspace", "srft"])
def test_a_sketch_that_meets_the_tolerance_is_returned(method: str) -> None:
    assert svd(with_spectrum((300, 200), fast(200)), 3, method, oversample=30).method == method


def test_converged_iterations_are_recognized_for_slow_decay() -> None:
    matrix = with_spectrum((300, 200), torch.cat([slow(20), 0.5 * slow(200)[20:]]))
    found = svd(matrix, 20, "subspace", power_iterations=12)
    assert found.method == "subspace"
    assert found.excess is not None
    assert 0 < found.excess <= 1e-3


def test_power_iterations_close_the_gap_for_slow_decay() -> None:
    matrix, optimum = with_spectrum((300, 200), slow(200)), float(torch.linalg.vector_norm(slow(200)[20:]))

    def excess(power_iterations: int) -> float:
        found = svd(matrix, 20, "subspace", power_iterations=power_iterations, tolerance=inf)
        return error_of(matrix, found) / optimum - 1

    assert excess(0) > 0.05  # the premise of the next lines
    assert excess(2) < 0.02
    assert excess(8) < 0.002


@pytest.mark.parametrize("effort", [(0, 0), (10, 2), (30, 8)], ids=str)
@pytest.mark.parametrize("method", SKETCHES)
@pytest.mark.parametrize("spectrum", ["flat", "nearly_flat", "ones", "noisy"])
def test_bounds_hold_for_nearly_flat_spectra(spectrum: str, method: str, effort: tuple[int, int]) -> None:
    """A matrix with orthonormal columns, rounded to bfloat16, has a nearly flat spectrum too."""
    values = torch.ones(80) if spectrum == "ones" else SPECTRA[spectrum](80)
    for shape, dtype in (((120, 80), torch.float32), ((80, 120), torch.bfloat16)):
        matrix = with_spectrum(shape, values, dtype=torch.float64).to(dtype)
        exact = torch.linalg.svdvals(matrix.double())
        for rank in (5, 20):
            optimum = float(torch.linalg.vector_norm(exact[rank:]))
            for tolerance in (1e-3, 0.03, 1.0):
                found = svd(matrix, rank, method, oversample=effort[0], power_iterations=effort[1], tolerance=tolerance)
                assert found.excess is not None
                assert found.excess <= tolerance
                # The difference of 2e-6 is rounding of the factors to float32.
                assert error_of(matrix, found) <= (1 + found.excess) * optimum * (1 + 2e-6)
                assert found.least <= optimum**2


@pytest.mark.parametrize("method", SKETCHES)
def test_sketches_depend_on_the_seed_only(method: str) -> None:
    matrix = with_spectrum((120, 90), slow(90))
    first, again, other = (svd(matrix, 9, method, seed, tolerance=inf).u for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)
