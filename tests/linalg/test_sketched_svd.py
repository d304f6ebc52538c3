from math import inf
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.sketched_svd import SKETCHES, sketched_svd
from lrzip.linalg.solver import Solver, TruncatedSVD
from tests.support.matrices import fast, slow, with_spectrum


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


@pytest.mark.parametrize("method", SKETCHES)
def test_sketches_depend_on_the_seed_only(method: str) -> None:
    matrix = with_spectrum((120, 90), slow(90))
    first, again, other = (svd(matrix, 9, method, seed, tolerance=inf).u for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)
