from math import sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.rangefinder import gaussian_range, subspace_iteration
from lrzip.linalg.interpolative import row_extraction_svd, row_interpolative
from tests.support.matrices import SHAPES, SPECTRA, slow, with_spectrum

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64)}


def random_basis(m: int, size: int, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    basis: Tensor = torch.linalg.qr(torch.randn(m, size, dtype=dtype, generator=Generator().manual_seed(seed))).Q
    return basis


def condition_bound(m: int, size: int) -> float:
    """√(1 + 4 l (m − l)): of the norm of x, and of the condition of the chosen rows."""
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
        # A backward stable solve errs by its condition; its dimension is in the norm of x already.
        atol = 10 * EPS[dtype] * condition_bound(m, size)
        torch.testing.assert_close(x @ basis[indices], basis, rtol=0, atol=atol)


def test_rows_of_lu_alone_would_exceed_the_bound() -> None:
    """Wilkinson's matrix, whose inverse grows by 1.9 a row, over a row that LU finds no reason to pick."""
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
    """‖A − u s vh‖₂ ≤ [1 + √(1 + 4 l (m − l))] · ‖A − QQᵀA‖₂, and nothing is below the optimum."""
    matrix = with_spectrum(shape, SPECTRA[spectrum](min(shape)), dtype=torch.float64)
    size = max(min(shape) // 3, 1)
    for seed in range(5):
        basis = gaussian_range(matrix, size, generator=Generator().manual_seed(seed))
        u, s, vh = row_extraction_svd(matrix, basis)
        projected = float(torch.linalg.matrix_norm(matrix - basis @ (basis.mT @ matrix), ord=2))
        error = float(torch.linalg.matrix_norm(matrix - (u * s) @ vh, ord=2))
        assert error <= (1 + condition_bound(shape[0], size)) * projected + 1e-12
        optimum = float(SPECTRA[spectrum](min(shape))[size:].max()) if size < min(shape) else 0.0
        assert error >= optimum * (1 - 1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_row_extraction_gives_an_svd(shape: tuple[int, int], spectrum: str, scale: float) -> None:
    matrix = with_spectrum(shape, SPECTRA[spectrum](min(shape))) * scale
    for size in {1, max(min(shape) // 3, 1), min(shape)}:
        basis = subspace_iteration(matrix, size, power_iterations=1, generator=Generator().manual_seed(0))
        u, s, vh = row_extraction_svd(matrix, basis)
        atol = 20 * sqrt(max(shape)) * EPS[torch.float32]
        torch.testing.assert_close(u.mT @ u, torch.eye(size), rtol=0, atol=atol)
        torch.testing.assert_close(vh @ vh.mT, torch.eye(size), rtol=0, atol=atol)
        assert bool((s >= 0).all())
        assert bool((s[:-1] >= s[1:]).all())
        assert bool(s.isfinite().all())


def test_only_the_chosen_rows_are_read() -> None:
    matrix = with_spectrum((60, 40), slow(40))
    basis = random_basis(60, 8, dtype=torch.float32)
    indices, _ = row_interpolative(basis)
    others = torch.full_like(matrix, torch.nan)
    others[indices] = matrix[indices]
    for part, expected in zip(row_extraction_svd(others, basis), row_extraction_svd(matrix, basis), strict=True):
        assert part.equal(expected)
