from math import inf, sqrt
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.lapack import NotConverged
from lrzip.linalg.solver import Solver, TruncatedSVD
from lrzip.linalg.svd import METHODS, singular_values, truncated_svd
from tests.support.matrices import SHAPES, SPECTRA, slow, with_spectrum

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64)}


def svd(matrix: Tensor, rank: int, method: str = "auto", seed: int = 0, **options: Any) -> TruncatedSVD:
    return truncated_svd(matrix, rank, solver=Solver(method, **options), generator=Generator().manual_seed(seed))


def error_of(matrix: Tensor, found: TruncatedSVD) -> float:
    return float(torch.linalg.matrix_norm(matrix.double() - (found.u.double() * found.s) @ found.vh.double()))


def departure(columns: Tensor) -> float:
    """Return the largest deviation of the Gram matrix of columns from the identity."""
    return float((columns.mT @ columns - torch.eye(columns.shape[1], dtype=columns.dtype)).abs().max())


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_singular_values_equal_lapack(shape: tuple[int, int], spectrum: str, dtype: torch.dtype) -> None:
    matrix = with_spectrum(shape, SPECTRA[spectrum](min(shape)), dtype=dtype)
    expected = torch.linalg.svdvals(matrix.double())
    # Gram matrices in float64 give σ to √eps₆₄ σ₁ in the worst case; float32 is used only if it gives the smallest
    # value to 0.1 %.
    tolerance = sqrt(EPS[torch.float64]) if dtype == torch.float32 else 10 * sqrt(max(shape)) * EPS[dtype]
    atol, rtol = tolerance * float(expected[0] + 1e-300), 1e-3 if dtype == torch.float32 else 0
    torch.testing.assert_close(singular_values(matrix), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("shape", [(80, 60), (600, 60)], ids=["nearly square", "tall"])
def test_condition_numbers_up_to_a_million_are_exact_to_one_percent(shape: tuple[int, int]) -> None:
    for exponent in (-1, -3, -6):
        matrix = with_spectrum(shape, torch.logspace(0, exponent, 60, dtype=torch.float64))
        expected = torch.linalg.svdvals(matrix.double())
        found = singular_values(matrix)
        assert float(found[0] / found[-1]) == pytest.approx(float(expected[0] / expected[-1]), rel=0.01)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_method_meets_the_tolerance_and_its_own_bound(
    shape: tuple[int, int], spectrum: str, dtype: torch.dtype, method: str
) -> None:
    values = SPECTRA[spectrum](min(shape))
    matrix = with_spectrum(shape, values, dtype=dtype)
    # The error that no factors of this precision avoid: that of LAPACK is up to eleven eps.
    rounding = 20 * EPS[dtype] * float(torch.linalg.vector_norm(values))
    for rank in {1, max(min(shape) // 4, 1), min(shape)}:
        found = svd(matrix, rank, method)
        optimum = float(torch.linalg.vector_norm(values[rank:]))
        assert found.excess is not None
        assert found.excess <= 1e-3
        assert optimum - rounding <= error_of(matrix, found) <= (1 + found.excess) * optimum + rounding
        assert found.u.dtype == found.s.dtype == found.vh.dtype == dtype
        assert bool((found.s[:-1] >= found.s[1:]).all())
        assert departure(found.u) <= 1e-4 + 20 * sqrt(max(shape)) * EPS[dtype]
        assert departure(found.vh.mT) <= 1e-4 + 20 * sqrt(max(shape)) * EPS[dtype]


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("method", METHODS)
def test_very_small_and_large_matrices_keep_their_precision(scale: float, method: str) -> None:
    matrix = with_spectrum((96, 40), slow(40))
    found, scaled = svd(matrix, 8, method), svd(matrix * scale, 8, method)
    torch.testing.assert_close(scaled.s / scale, found.s, rtol=1e-4, atol=0)
    product, scaled_product = ((part.u * (part.s / by)) @ part.vh for part, by in ((found, 1.0), (scaled, scale)))
    torch.testing.assert_close(scaled_product, product, rtol=0, atol=1e-4)
    torch.testing.assert_close(singular_values(matrix * scale) / scale, singular_values(matrix), rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_repeated_singular_values_and_exact_ranks_are_factorized(method: str) -> None:
    values = torch.cat([torch.full((10,), 2.0), torch.zeros(30)])
    matrix = with_spectrum((64, 40), values)
    for rank in (5, 10, 20):
        found = svd(matrix, rank, method)
        optimum = float(torch.linalg.vector_norm(values[rank:]))
        assert error_of(matrix, found) <= 1.001 * optimum + 20 * EPS[torch.float32] * sqrt(40)
        assert departure(found.u) <= 2e-4


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_and_any_strides_are_computed_in_float32(method: str) -> None:
    matrix = with_spectrum((96, 40), slow(40)).bfloat16()
    found, same = svd(matrix, 8, method), svd(matrix.float(), 8, method)
    assert found.u.dtype == torch.float32
    assert found.method == same.method
    torch.testing.assert_close((found.u * found.s) @ found.vh, (same.u * same.s) @ same.vh, rtol=0, atol=1e-5)
    padded = torch.zeros(192, 120)
    padded[::2, ::3] = matrix.float()
    strided = svd(padded[::2, ::3], 8, method)
    torch.testing.assert_close((strided.u * strided.s) @ strided.vh, (same.u * same.s) @ same.vh, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_impossible_ranks_and_values_that_are_not_finite_are_refused(method: str) -> None:
    matrix = with_spectrum((20, 10), slow(10))
    for rank in (0, 11):
        with pytest.raises(ValueError, match="between 1 and 10"):
            svd(matrix, rank, method)
    for value in (float("nan"), inf, -inf):
        spoilt = matrix.clone()
        spoilt[3, 4] = value
        with pytest.raises(ValueError, match="NaN or Inf"):
            svd(spoilt, 2, method)
        with pytest.raises(ValueError, match="NaN or Inf"):
            singular_values(spoilt)


@pytest.mark.parametrize("method", ["exact", "gram"])
def test_a_failure_of_lapack_to_converge_is_repaired(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, original = with_spectrum((60, 40), slow(40)), {}

    def failing(name: str) -> Any:
        original[name] = getattr(torch.linalg, name)

        def fail_in_float32(argument: Tensor, **options: Any) -> Any:
            if argument.dtype == torch.float32:
                raise NotConverged("did not converge")
            return original[name](argument, **options)

        return fail_in_float32

    for name in ("svd", "eigh"):
        monkeypatch.setattr(torch.linalg, name, failing(name))
    found = svd(matrix, 8, method)
    monkeypatch.undo()
    assert found.method == {"exact": "lapack", "gram": "gram in float64"}[method]
    assert error_of(matrix, found) == pytest.approx(error_of(matrix, svd(matrix, 8, "exact")), rel=1e-4)
