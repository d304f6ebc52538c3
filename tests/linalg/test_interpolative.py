from math import sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.rangefinder import power_iteration, subspace_iteration
from lrzip.linalg.interpolative import row_extraction_svd, row_interpolative
from tests.support.matrices import SHAPES, SPECTRA, assert_svd, slow, with_spectrum

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64)}


def random_basis(m: int, size: int, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    basis: Tensor = torch.linalg.qr(torch.randn(m, size, dtype=dtype, generator=Generator().manual_seed(seed))).Q
    return basis


def condition_bound(m: int, size: int) -> float:
    """√(1 + 4 l (m − l)), the bound on the norm of x and on the condition number of the chosen rows."""
    return sqrt(1 + 4 * size * (m - size))


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize(("m", "size"), [(1, 1), (50, 1), (50, 7), (80, 40), (40, 39), (40, 40)])
def test_interpolation_reconstructs_with_small_coefficients(m: int, size: int, dtype: torch.dtype) -> None:
    for seed in range(10):
        basis = random_basis(m, size, dtype=dtype, seed=seed)
        indices, x = row_interpolative(basis)
        assert len(set(indices.tolist())) == size
        assert x[indices].equal(torch.eye(size, dtype=dtype))
        assert float(x.abs().max()) <= 2
        # A backward stable solve has an error of eps times the condition number.
        atol = 10 * EPS[dtype] * condition_bound(m, size)
        torch.testing.assert_close(x @ basis[indices], basis, rtol=0, atol=atol)


def test_rows_of_lu_alone_would_exceed_the_bound() -> None:
    """The inverse of Wilkinson's matrix grows by 1.9 per row, and LU does not select the row below it."""
    size = 12
    ones = torch.ones(size + 1, size, dtype=torch.float64)
    basis = torch.linalg.qr(torch.eye(size + 1, size, dtype=torch.float64) - 0.9 * ones.tril(-1)).Q
    pivots = torch.linalg.lu_factor(basis).pivots
    rows = list(range(size + 1))
    for step, pivot in enumerate(pivots.tolist()):
        rows[step], rows[pivot - 1] = rows[pivot - 1], rows[step]
    assert float((basis @ torch.linalg.inv(basis[rows[:size]])).abs().max()) > 2
    indices, x = row_interpolative(basis)
    assert float(x.abs().max()) <= 2
    torch.testing.assert_close(x @ basis[indices], basis, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spectrum", ["slow", "fast", "noisy", "flat_then_drop"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_row_extraction_obeys_lemma_5_1(shape: tuple[int, int], spectrum: str) -> None:
    """‖A − u s vh‖₂ ≤ [1 + √(1 + 4 l (m − l))] · ‖A − QQᵀA‖₂, and at least the optimum."""
    matrix = with_spectrum(shape, SPECTRA[spectrum](min(shape)), dtype=torch.float64)
    size = max(min(shape) // 3, 1)
    for seed in range(5):
        basis = power_iteration(matrix, size, power_iterations=0, generator=Generator().manual_seed(seed))
        u, s, vh = row_extraction_svd(matrix, basis)
        projected = float(torch.linalg.matrix_norm(matrix - basis @ (basis.mT @ matrix), ord=2))
        error = float(torch.linalg.matrix_norm(matrix - (u * s) @ vh, ord=2))
        assert error <= (1 + condition_bound(shape[0], size)) * projected + 1e-12
        optimum = float(SPECTRA[spectrum](min(shape))[size:].max()) if size < min(shape) else 0.0
        assert error >= optimum * (1 - 1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_row_extraction_returns_an_svd(shape: tuple[int, int], spectrum: str, scale: float) -> None:
    matrix = with_spectrum(shape, SPECTRA[spectrum](min(shape))) * scale
    for size in {1, max(min(shape) // 3, 1), min(shape)}:
        basis = subspace_iteration(matrix, size, power_iterations=1, generator=Generator().manual_seed(0))
        assert_svd(*row_extraction_svd(matrix, basis))


def test_row_extraction_reads_only_the_chosen_rows() -> None:
    matrix = with_spectrum((60, 40), slow(40))
    basis = random_basis(60, 8, dtype=torch.float32)
    indices, _ = row_interpolative(basis)
    others = torch.full_like(matrix, torch.nan)
    others[indices] = matrix[indices]
    for part, expected in zip(row_extraction_svd(others, basis), row_extraction_svd(matrix, basis), strict=True):
        assert part.equal(expected)
