from dataclasses import replace
from math import inf, sqrt
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.svd import METHODS, Solver, TruncatedSVD, singular_values, truncated_svd
from tests.support.matrices import SHAPES, SPECTRA, fast, flat_then_drop, slow, with_spectrum, zero

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64)}


def svd(matrix: Tensor, rank: int, method: str = "auto", seed: int = 0, **options: Any) -> TruncatedSVD:
    return truncated_svd(matrix, rank, solver=Solver(method, **options), generator=Generator().manual_seed(seed))


def error_of(matrix: Tensor, found: TruncatedSVD) -> float:
    return float(torch.linalg.matrix_norm(matrix.double() - (found.u.double() * found.s) @ found.vh.double()))


def departure(columns: Tensor) -> float:
    return float((columns.mT @ columns - torch.eye(columns.shape[1], dtype=columns.dtype)).abs().max())


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_singular_values_equal_lapack(shape: tuple[int, int], spectrum: str, dtype: torch.dtype) -> None:
    matrix = with_spectrum(shape, SPECTRA[spectrum](min(shape)), dtype=dtype)
    expected = torch.linalg.svdvals(matrix.double())
    # Gram matrices in float64 are right to √eps₆₄ σ₁ in the worst case, and those in float32, of well conditioned
    # matrices only, to 0.1 % of the smallest value.
    tolerance = sqrt(EPS[torch.float64]) if dtype == torch.float32 else 10 * sqrt(max(shape)) * EPS[dtype]
    atol, rtol = tolerance * float(expected[0] + 1e-300), 1e-3 if dtype == torch.float32 else 0
    torch.testing.assert_close(singular_values(matrix), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("shape", [(80, 60), (600, 60)], ids=["nearly square", "tall"])
def test_condition_numbers_up_to_a_million_are_right_to_one_percent(shape: tuple[int, int]) -> None:
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
    # What factors of this precision cannot do better than: LAPACK itself ends up to eleven eps above zero.
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


@pytest.mark.parametrize("method", ["randomized", "subspace", "srft", "row-extraction", "single-pass"])
def test_a_sketch_that_misses_the_tolerance_gives_way(method: str) -> None:
    matrix = with_spectrum((300, 200), slow(200))
    optimum = float(torch.linalg.vector_norm(slow(200)[20:]))
    unchecked = svd(matrix, 20, method, tolerance=inf)
    assert (unchecked.method, unchecked.excess) == (method, None)
    assert error_of(matrix, unchecked) > 1.002 * optimum  # or the next lines would prove nothing
    checked = svd(matrix, 20, method)
    assert checked.method == f"{method}, then gram"
    assert error_of(matrix, checked) <= 1.001 * optimum
    assert svd(matrix, 20, method, tolerance=5.0).method == method


@pytest.mark.parametrize("method", ["randomized", "subspace", "srft"])
def test_a_sketch_that_meets_the_tolerance_stays(method: str) -> None:
    assert svd(with_spectrum((300, 200), fast(200)), 3, method, oversample=30).method == method


def test_converged_iterations_are_recognized_on_slow_decay() -> None:
    matrix = with_spectrum((300, 200), torch.cat([slow(20), 0.5 * slow(200)[20:]]))
    found = svd(matrix, 20, "subspace", power_iterations=12)
    assert found.method == "subspace"
    assert found.excess is not None
    assert 0 < found.excess <= 1e-3


def test_power_iteration_closes_the_gap_on_slow_decay() -> None:
    matrix, optimum = with_spectrum((300, 200), slow(200)), float(torch.linalg.vector_norm(slow(200)[20:]))

    def excess(power_iterations: int) -> float:
        found = svd(matrix, 20, "subspace", power_iterations=power_iterations, tolerance=inf)
        return error_of(matrix, found) / optimum - 1

    assert excess(0) > 0.05  # the bare sketch must fail here, or the next line would prove nothing
    assert excess(2) < 0.02
    assert excess(8) < 0.002


def test_auto_takes_what_costs_least() -> None:
    matrix = with_spectrum((1200, 1000), slow(1000))
    assert svd(matrix, 20).method == "lanczos"
    assert svd(matrix, 700).method == "gram"
    assert svd(with_spectrum((600, 512), fast(512)), 12).method == "randomized"
    assert svd(with_spectrum((600, 512), fast(512)), 12, "gram").method == "lanczos in float64"


def test_float64_takes_over_where_float32_would_lie() -> None:
    values = torch.cat([torch.ones(8), torch.full((24,), 1e-4)])
    matrix = with_spectrum((48, 32), values)
    found = svd(matrix, 8, "gram")
    assert found.method == "gram in float64"
    assert error_of(matrix, found) <= 1.001 * float(torch.linalg.vector_norm(values[8:].double()))
    steep = with_spectrum((48, 32), torch.cat([torch.ones(8), torch.full((24,), 1e-9)]), dtype=torch.float64)
    assert svd(steep, 8, "gram").method == "lapack"
    assert svd(with_spectrum((48, 32), slow(32)), 8, "gram").method == "gram"


def test_transposing_swaps_the_bases() -> None:
    matrix = with_spectrum((40, 96), slow(40))
    found, flipped = svd(matrix, 7), svd(matrix.mT, 7)
    torch.testing.assert_close(flipped.s, found.s)
    torch.testing.assert_close(
        (flipped.vh.mT * flipped.s) @ flipped.u.mT, (found.u * found.s) @ found.vh, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("method", ["randomized", "subspace", "srft", "row-extraction", "single-pass"])
def test_sketches_depend_on_the_seed_alone(method: str) -> None:
    matrix = with_spectrum((120, 90), slow(90))
    first, again, other = (svd(matrix, 9, method, seed, tolerance=inf).u for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("method", METHODS)
def test_very_small_and_large_matrices_lose_nothing(scale: float, method: str) -> None:
    matrix = with_spectrum((96, 40), slow(40))
    found, scaled = svd(matrix, 8, method), svd(matrix * scale, 8, method)
    torch.testing.assert_close(scaled.s / scale, found.s, rtol=1e-4, atol=0)
    product, scaled_product = ((part.u * (part.s / by)) @ part.vh for part, by in ((found, 1.0), (scaled, scale)))
    torch.testing.assert_close(scaled_product, product, rtol=0, atol=1e-4)
    torch.testing.assert_close(singular_values(matrix * scale) / scale, singular_values(matrix), rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_repeated_singular_values_and_exact_ranks_are_no_trouble(method: str) -> None:
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
def test_a_rank_that_cannot_be_and_values_that_are_not_finite_are_refused(method: str) -> None:
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
def test_another_driver_takes_over_when_lapack_does_not_converge(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, original = with_spectrum((60, 40), slow(40)), {}

    def stubborn(name: str) -> Any:
        original[name] = getattr(torch.linalg, name)

        def fail_in_float32(argument: Tensor, **options: Any) -> Any:
            if argument.dtype == torch.float32:
                raise torch.linalg.LinAlgError("did not converge")  # type: ignore[attr-defined]
            return original[name](argument, **options)

        return fail_in_float32

    for name in ("svd", "eigh"):
        monkeypatch.setattr(torch.linalg, name, stubborn(name))
    found = svd(matrix, 8, method)
    monkeypatch.undo()
    assert found.method == {"exact": "lapack", "gram": "gram in float64"}[method]
    assert error_of(matrix, found) == pytest.approx(error_of(matrix, svd(matrix, 8, "exact")), rel=1e-4)


def test_singular_vectors_are_orthonormal_even_when_their_values_span_many_magnitudes() -> None:
    for values in (fast(40), flat_then_drop(40), torch.logspace(0, -6, 40, dtype=torch.float64), zero(40)):
        matrix = with_spectrum((64, 40), values)
        found = svd(matrix, 30)
        assert departure(found.u) <= 2e-4
        assert departure(found.vh.mT) <= 2e-4


def test_a_looser_tolerance_is_a_looser_promise() -> None:
    matrix = with_spectrum((64, 40), torch.cat([torch.ones(8), torch.full((32,), 5e-3)]))
    strict, loose = Solver("gram", tolerance=1e-5), Solver("gram", tolerance=0.5)
    found = [truncated_svd(matrix, 8, solver=solver, generator=Generator()) for solver in (strict, loose)]
    assert [part.method for part in found] == ["gram in float64", "gram"]
    assert found[1].excess is not None
    assert found[1].excess <= replace(loose).tolerance
