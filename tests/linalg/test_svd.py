from math import sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.svd import Solver, singular_values, truncated_svd
from tests.matrices import SHAPES, SPECTRA, slow, with_spectrum

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64)}
EXACT = Solver("exact")


def svd(matrix: Tensor, rank: int, solver: Solver, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, str]:
    return truncated_svd(matrix, rank, solver=solver, generator=Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_singular_values_equal_lapack(shape: tuple[int, int], spectrum: str, dtype: torch.dtype) -> None:
    matrix = with_spectrum(shape, SPECTRA[spectrum](min(shape)), dtype=dtype)
    expected = torch.linalg.svdvals(matrix.double())
    # Gram matrices in float64 are right to √eps₆₄ σ₁ in the worst case, and are used for float32 only.
    tolerance = sqrt(EPS[torch.float64]) if dtype == torch.float32 else 10 * sqrt(max(shape)) * EPS[dtype]
    torch.testing.assert_close(singular_values(matrix), expected, rtol=0, atol=tolerance * float(expected[0] + 1e-300))


def test_condition_numbers_up_to_a_million_are_right_to_one_percent() -> None:
    values = torch.logspace(0, -6, 60, dtype=torch.float64)
    matrix = with_spectrum((80, 60), values).double()
    assert matrix.float().double().equal(matrix)
    expected = torch.linalg.svdvals(matrix)
    found = singular_values(matrix.float())
    assert float(found[0] / found[-1]) == pytest.approx(float(expected[0] / expected[-1]), rel=0.01)


@pytest.mark.parametrize("method", ["exact", "randomized", "auto"])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_bases_are_orthonormal_and_values_descend(shape: tuple[int, int], spectrum: str, method: str) -> None:
    rank = max(min(shape) // 3, 1)
    u, s, vh, _ = svd(with_spectrum(shape, SPECTRA[spectrum](min(shape))), rank, Solver(method))
    identity = torch.eye(rank)
    atol = 20 * sqrt(max(shape)) * EPS[torch.float32]
    torch.testing.assert_close(u.mT @ u, identity, rtol=0, atol=atol)
    torch.testing.assert_close(vh @ vh.mT, identity, rtol=0, atol=atol)
    assert s.shape == (rank,)
    assert bool((s >= 0).all())
    assert bool((s[:-1] >= s[1:]).all())


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_exact_error_is_the_discarded_tail(shape: tuple[int, int], spectrum: str, dtype: torch.dtype) -> None:
    values = SPECTRA[spectrum](min(shape))
    matrix = with_spectrum(shape, values, dtype=dtype)
    for rank in {1, max(min(shape) // 4, 1), min(shape)}:
        u, s, vh, _ = svd(matrix, rank, EXACT)
        error = float(torch.linalg.matrix_norm(matrix.double() - (u.double() * s) @ vh.double()))
        optimum = float(torch.linalg.vector_norm(values[rank:]))
        # Eckart–Young, up to 0.1 % that the Gram matrix may cost and the rounding of the factors themselves.
        rounding = 10 * sqrt(max(shape)) * EPS[dtype] * float(torch.linalg.vector_norm(values))
        assert optimum - rounding <= error <= 1.001 * optimum + rounding


def test_exact_falls_back_to_lapack_where_the_gram_matrix_would_lie() -> None:
    values = torch.cat([torch.ones(8), torch.full((24,), 1e-7)])
    matrix = with_spectrum((48, 32), values, dtype=torch.float64)
    assert svd(matrix, 8, EXACT)[3] == "lapack"
    assert svd(with_spectrum((48, 32), slow(32)), 8, EXACT)[3] == "gram"


def test_transposing_swaps_the_bases() -> None:
    matrix = with_spectrum((40, 96), slow(40))
    u, s, vh, _ = svd(matrix, 7, EXACT)
    ut, st, vht, _ = svd(matrix.mT, 7, EXACT)
    torch.testing.assert_close(st, s)
    torch.testing.assert_close((vht.mT * st) @ ut.mT, (u * s) @ vh, rtol=0, atol=1e-5)


def test_power_iteration_closes_the_gap_on_slow_decay() -> None:
    matrix, rank = with_spectrum((300, 200), slow(200)), 20
    optimum = float(torch.linalg.vector_norm(slow(200)[rank:]))

    def excess(power_iterations: int) -> float:
        u, s, vh, _ = svd(matrix, rank, Solver("randomized", 10, power_iterations))
        return float(torch.linalg.matrix_norm(matrix - (u * s) @ vh)) / optimum - 1

    assert excess(0) > 0.05  # the bare sketch must fail here, or the next line would prove nothing
    assert excess(2) < 0.02
    assert excess(8) < 0.002


def test_randomized_depends_on_the_seed_alone() -> None:
    matrix = with_spectrum((120, 90), slow(90))
    first, again, other = (svd(matrix, 9, Solver("randomized"), seed)[0] for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


def test_auto_sketches_only_small_ranks_of_large_matrices() -> None:
    matrix = with_spectrum((1200, 1000), slow(1000))
    assert svd(matrix, 10, Solver())[3] == "randomized"
    assert svd(matrix, 300, Solver())[3] == "gram"


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("method", ["exact", "randomized"])
def test_very_small_and_large_matrices_lose_nothing(scale: float, method: str) -> None:
    matrix = with_spectrum((96, 40), slow(40))
    u, s, vh, _ = svd(matrix, 8, Solver(method))
    scaled_u, scaled_s, scaled_vh, _ = svd(matrix * scale, 8, Solver(method))
    torch.testing.assert_close(scaled_s / scale, s, rtol=1e-4, atol=0)
    torch.testing.assert_close((scaled_u * scaled_s / scale) @ scaled_vh, (u * s) @ vh, rtol=0, atol=1e-4)
    torch.testing.assert_close(singular_values(matrix * scale) / scale, singular_values(matrix), rtol=1e-4, atol=0)
