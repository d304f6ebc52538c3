from math import inf

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.subspace import Subspace, full_subspace, leading_subspace
from tests.support.matrices import SHAPES, SPECTRA, assert_orthonormal, slow, with_spectrum

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def leading(matrix: Tensor, rank: int, *, tolerance: float = 1e-3, coarse: bool = True) -> Subspace:
    generator = Generator().manual_seed(0)
    return leading_subspace(matrix, rank, tolerance=tolerance, generator=generator, coarse=coarse)


def squared_error(matrix: Tensor, vectors: Tensor) -> float:
    """Return ‖A − A V Vᵀ‖_F² of the smaller side, in float64."""
    columns = (matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT).double()
    basis = torch.linalg.qr(vectors.double()).Q
    return float((columns - columns @ basis @ basis.mT).square().sum())


@DTYPES
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_excess_bounds_the_error_of_the_leading_vectors(
    shape: tuple[int, int], spectrum: str, dtype: torch.dtype
) -> None:
    values = SPECTRA[spectrum](min(shape))
    matrix = with_spectrum(shape, values, dtype=dtype)
    for rank in {1, max(min(shape) // 4, 1), min(shape)}:
        found = full_subspace(matrix, rank, tolerance=1e-3, rank=rank)
        assert_orthonormal(found.vectors)
        assert found.vectors.dtype == dtype
        assert found.excess(rank) <= 1e-3
        optimum = float(values[rank:].square().sum())
        most = (1 + found.excess(rank)) ** 2 * optimum
        assert squared_error(matrix, found.vectors) <= most * (1 + 1e-6) + found.floor
        assert found.energy == pytest.approx(float(matrix.double().square().sum()), rel=1e-6)


@DTYPES
def test_all_squares_are_those_of_the_singular_values(dtype: torch.dtype) -> None:
    matrix = with_spectrum((96, 40), slow(40), dtype=dtype)
    found = full_subspace(matrix, 5, tolerance=1e-3)
    assert found.vectors.shape == (40, 5)
    torch.testing.assert_close(found.squares, slow(40).square(), rtol=1e-4, atol=0)


def test_excess_falls_to_zero_at_full_rank_and_below_the_floor() -> None:
    squares = torch.tensor([4.0, 1.0, 1e-30], dtype=torch.float64)
    found = Subspace(squares, torch.eye(3), 5.0, (3, 3), slack=0.1, floor=1e-12, method="gram")
    assert found.excess(1) == pytest.approx((1 + 0.1 / 0.9) ** 0.5 - 1)
    assert found.excess(3) == 0
    exact = Subspace(squares, torch.eye(3)[:, :2], 5.0, (3, 3), slack=0.0, floor=1e-12, method="gram")
    assert exact.excess(2) == 0


def test_float64_and_then_lapack_replace_float32_that_misses_the_tolerance() -> None:
    values = torch.cat([torch.ones(8), torch.full((24,), 1e-4)])
    matrix = with_spectrum((48, 32), values)
    assert full_subspace(matrix, 8, tolerance=inf, rank=8).method == "gram"
    assert full_subspace(matrix, 8, tolerance=1e-3).method == "gram"  # no rank: the first result is accepted
    assert full_subspace(matrix, 8, tolerance=1e-3, rank=8).method == "gram in float64"
    assert full_subspace(matrix, 8, tolerance=inf, rank=8, coarse=False).method == "gram in float64"
    steep = with_spectrum((48, 32), torch.cat([torch.ones(8), torch.full((24,), 1e-9)]), dtype=torch.float64)
    assert full_subspace(steep, 8, tolerance=1e-3, rank=8).method == "lapack"


@DTYPES
def test_lanczos_and_all_eigenvectors_capture_the_same_energy(dtype: torch.dtype) -> None:
    matrix = with_spectrum((640, 600), slow(600), dtype=dtype)
    partial, full = leading(matrix, 12), full_subspace(matrix, 12, tolerance=1e-3, rank=12)
    assert partial.method == "lanczos"
    assert full.method == "gram"
    optimum = float(slow(600)[12:].square().sum())
    for found in (partial, full):
        assert squared_error(matrix, found.vectors) <= (1 + found.excess(12)) ** 2 * optimum * (1 + 1e-6)


def test_lanczos_that_reaches_its_limit_is_replaced_by_all_eigenvectors() -> None:
    matrix = with_spectrum((640, 600), torch.linspace(1.0, 0.99, 600), dtype=torch.float64)
    assert leading(matrix, 12).method == "lanczos"
    assert leading(matrix, 12, tolerance=1e-9).method == "gram"


def test_small_or_nearly_full_problems_use_all_eigenvectors() -> None:
    assert leading(with_spectrum((96, 40), slow(40)), 4).method == "gram"
    assert leading(with_spectrum((320, 300), slow(300)), 200).method == "gram"


@pytest.mark.parametrize("factor", [2.0**-100, 2.0**100])
def test_scaling_by_a_power_of_two_scales_squares_only(factor: float) -> None:
    matrix = with_spectrum((96, 40), slow(40))
    plain, scaled = leading(matrix, 4), leading(matrix * factor, 4)
    torch.testing.assert_close(scaled.squares / factor**2, plain.squares, rtol=1e-4, atol=0)
    torch.testing.assert_close(scaled.vectors.abs(), plain.vectors.abs(), rtol=0, atol=1e-4)
    assert scaled.energy == pytest.approx(plain.energy * factor**2, rel=1e-6)
