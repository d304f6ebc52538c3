from collections.abc import Callable
from functools import partial
from math import e, exp, pi, sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.rangefinder import power_iteration, srft_range, subspace_iteration
from lrzip.linalg.blocks.sketches import cosine_transform
from tests.support.matrices import SHAPES, SPECTRA, assert_orthonormal, fast, flat_then_drop, slow, with_spectrum

SCHEMES: dict[str, Callable[..., Tensor]] = {"power": power_iteration, "subspace": subspace_iteration}
FINDERS: dict[str, Callable[..., Tensor]] = {
    "gaussian": partial(power_iteration, power_iterations=0),
    "srft": srft_range,
    **{name: partial(scheme, power_iterations=3) for name, scheme in SCHEMES.items()},
}


def loss(matrix: Tensor, basis: Tensor, norm: float | str = 2) -> float:
    """‖A − QQᵀA‖, spectral or Frobenius (`fro`)."""
    return float(torch.linalg.matrix_norm(matrix - basis @ (basis.mT @ matrix), ord=norm))


def basis_of(finder: str, matrix: Tensor, size: int, seed: int = 0) -> Tensor:
    return FINDERS[finder](matrix, size, generator=Generator().manual_seed(seed))


@pytest.mark.parametrize("finder", FINDERS)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_bases_are_orthonormal(shape: tuple[int, int], spectrum: str, finder: str) -> None:
    matrix = with_spectrum(shape, SPECTRA[spectrum](min(shape)))
    for size in {1, max(min(shape) // 3, 1), min(shape)}:
        assert_orthonormal(basis_of(finder, matrix, size))


@pytest.mark.parametrize("exponent", [-100, 100])
@pytest.mark.parametrize("finder", FINDERS)
def test_scaling_by_a_power_of_two_changes_no_bit(finder: str, exponent: int) -> None:
    matrix = with_spectrum((60, 40), slow(40))
    assert basis_of(finder, matrix * 2.0**exponent, 12).equal(basis_of(finder, matrix, 12))


@pytest.mark.parametrize("finder", FINDERS)
def test_range_of_a_matrix_of_low_rank_is_found_exactly(finder: str) -> None:
    values = torch.linspace(1, 0.5, 8, dtype=torch.float64)
    matrix = with_spectrum((70, 50), values, dtype=torch.float64)
    # Rounding errors of the sketch are amplified by the condition number of a Gaussian matrix of 8 columns.
    assert loss(matrix, basis_of(finder, matrix, 12)) <= 1e3 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_basis_is_orthonormal_after_many_iterations(spectrum: str, scheme: str) -> None:
    matrix = with_spectrum((90, 60), SPECTRA[spectrum](60))
    assert_orthonormal(SCHEMES[scheme](matrix, 20, power_iterations=30, generator=Generator().manual_seed(0)))


@pytest.mark.parametrize("spectrum", ["slow", "fast", "noisy"])
def test_mean_error_is_within_the_bound_of_theorem_10_5(spectrum: str) -> None:
    """E‖A − QQᵀA‖_F ≤ √(1 + k/(p − 1)) · (Σ_{j>k} σⱼ²)^½ (Halko, Martinsson & Tropp 2011), and at least the tail."""
    rank, oversample, runs = 10, 6, 40
    values = SPECTRA[spectrum](60)
    matrix = with_spectrum((90, 60), values, dtype=torch.float64)
    errors = [loss(matrix, basis_of("gaussian", matrix, rank + oversample, seed), "fro") for seed in range(runs)]
    bound = sqrt(1 + rank / (oversample - 1)) * float(torch.linalg.vector_norm(values[rank:]))
    floor = float(torch.linalg.vector_norm(values[rank + oversample :]))
    assert floor <= sum(errors) / runs <= bound


@pytest.mark.parametrize("spectrum", ["slow", "fast", "noisy"])
def test_mean_spectral_error_is_within_the_bound_of_theorem_10_6(spectrum: str) -> None:
    """E‖A − QQᵀA‖₂ ≤ (1 + √(k/(p − 1))) σ_{k+1} + e √(k + p)/p · (Σ_{j>k} σⱼ²)^½, within a factor of ten."""
    rank, oversample, runs = 10, 10, 40
    values = SPECTRA[spectrum](60)
    matrix = with_spectrum((90, 60), values, dtype=torch.float64)
    mean = sum(loss(matrix, basis_of("gaussian", matrix, rank + oversample, seed)) for seed in range(runs)) / runs
    tail = float(torch.linalg.vector_norm(values[rank:]))
    bound = (1 + sqrt(rank / (oversample - 1))) * float(values[rank]) + e * sqrt(rank + oversample) / oversample * tail
    assert mean <= bound
    assert bound <= 10 * mean or spectrum == "fast"  # for which oversampling reduces the error by 0.7^10


def test_spectral_error_exceeds_the_bound_of_corollary_10_9_no_more_often_than_stated() -> None:
    """‖A − QQᵀA‖₂ ≤ (1 + 17 √(1 + k/p)) σ_{k+1} + 8 √(k + p)/(p + 1) · (Σ_{j>k} σⱼ²)^½ except for P ≤ 6 e^-p."""
    rank, oversample, runs = 8, 4, 100
    values = slow(60)
    matrix = with_spectrum((90, 60), values, dtype=torch.float64)
    tail = float(torch.linalg.vector_norm(values[rank:]))
    bound = (1 + 17 * sqrt(1 + rank / oversample)) * float(values[rank])
    bound += 8 * sqrt(rank + oversample) / (oversample + 1) * tail
    errors = [loss(matrix, basis_of("gaussian", matrix, rank + oversample, seed)) for seed in range(runs)]
    assert sum(error > bound for error in errors) <= 6 * exp(-oversample) * runs


@pytest.mark.parametrize("scheme", SCHEMES)
def test_power_scheme_obeys_corollary_10_10(scheme: str) -> None:
    """E‖A − QQᵀA‖₂ ≤ [(1 + √(k/(p−1)) + e√(k+p)/p · √(min(m, n) − k))]^(1/(2q+1)) σ_{k+1}."""
    rank, oversample, power_iterations = 30, 5, 2
    values = flat_then_drop(60)
    matrix = with_spectrum((90, 60), values, dtype=torch.float64)
    constant = 1 + sqrt(rank / (oversample - 1)) + e * sqrt(rank + oversample) / oversample * sqrt(60 - rank)
    for seed in range(10):
        generator = Generator().manual_seed(seed)
        basis = SCHEMES[scheme](matrix, rank + oversample, power_iterations=power_iterations, generator=generator)
        assert loss(matrix, basis) <= constant ** (1 / (2 * power_iterations + 1)) * float(values[rank]) * (1 + 1e-9)
    assert constant > pi  # the bound is not the trivial one


@pytest.mark.parametrize("finder", SCHEMES)
def test_only_iterated_sketches_are_accurate_for_slow_decay(finder: str) -> None:
    matrix, rank, size = with_spectrum((300, 200), slow(200)), 20, 30
    best = float(slow(200)[rank])
    assert loss(matrix, basis_of("gaussian", matrix, size)) > 1.3 * best
    assert loss(matrix, basis_of("srft", matrix, size)) > 1.3 * best
    assert loss(matrix, basis_of(finder, matrix, size)) < 1.05 * best


def test_power_iteration_is_subspace_iteration_in_exact_arithmetic() -> None:
    matrix = with_spectrum((90, 60), slow(60), dtype=torch.float64)
    first, second = (basis_of(finder, matrix, 16) for finder in SCHEMES)
    # The condition number of (A Aᵀ)³ A Ω is about that of Ω times (σ₁ / σ₆₀)⁷ = 60^3.5.
    atol = 60**3.5 * 100 * torch.finfo(torch.float64).eps
    torch.testing.assert_close(first @ first.mT, second @ second.mT, rtol=0, atol=atol)


def test_power_iteration_loses_small_singular_values_that_subspace_iteration_keeps() -> None:
    """Below eps^(1 / (2q + 1)) σ₁, which is 0.1 σ₁ for q = 3 in float32, directions are lost in rounding."""
    values = torch.cat([torch.ones(10), torch.full((10,), 1e-3)])
    matrix = with_spectrum((90, 60), values)
    assert loss(matrix, basis_of("power", matrix, 20)) > 0.5e-3
    assert loss(matrix, basis_of("subspace", matrix, 20)) < 1e-5


@pytest.mark.parametrize("spectrum", ["slow", "fast", "noisy"])
def test_srft_is_as_accurate_as_a_gaussian_sketch(spectrum: str) -> None:
    """Its error is also at most √(1 + 7n/l) σ_{k+1} (theorem 11.2)."""
    rank, size, runs = 8, 24, 20
    values = SPECTRA[spectrum](60)
    matrix = with_spectrum((90, 60), values, dtype=torch.float64)
    structured, unstructured = (
        [loss(matrix, basis_of(finder, matrix, size, seed)) for seed in range(runs)] for finder in ("srft", "gaussian")
    )
    assert sum(structured) <= 1.1 * sum(unstructured)
    assert max(structured) <= sqrt(1 + 7 * 60 / size) * float(values[rank])


@pytest.mark.parametrize(
    "waves", [torch.eye(256).double(), cosine_transform(torch.eye(256).double())], ids=["columns", "frequencies"]
)
def test_srft_finds_ranges_that_sampled_columns_or_frequencies_would_miss(waves: Tensor) -> None:
    """8 of 256 columns are nonzero: a random sample of 16 contains all of them with a probability of 1e-11."""
    sparse = torch.zeros(64, 256, dtype=torch.float64)
    sparse[:, 100:108] = with_spectrum((64, 8), fast(8), dtype=torch.float64)
    matrix = sparse @ waves.mT
    for seed in range(10):
        assert loss(matrix, basis_of("srft", matrix, 16, seed)) <= 1e-11


@pytest.mark.parametrize("finder", FINDERS)
def test_bases_depend_on_the_seed_only(finder: str) -> None:
    matrix = with_spectrum((60, 40), slow(40))
    first, again, other = (basis_of(finder, matrix, 9, seed) for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)
