from math import inf, pi, sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.direct import power_iteration_svd
from lrzip.linalg.blocks.estimate import NormBounds, lanczos_norm, power_method_norm, probe_bound, residual
from tests.support.matrices import SHAPES, SPECTRA, slow, with_spectrum


def probe(matrix: Tensor, *, probes: int = 10, seed: int = 0) -> float:
    generator = Generator().manual_seed(seed)
    return probe_bound(matrix.matmul, matrix.shape[1], probes=probes, generator=generator, dtype=matrix.dtype)


def power(matrix: Tensor, iterations: int, *, probes: int = 10, failure: float = 1e-10, seed: int = 0) -> NormBounds:
    return power_method_norm(
        matrix.matmul,
        matrix.mT.matmul,
        matrix.shape[1],
        iterations=iterations,
        probes=probes,
        failure=failure,
        generator=Generator().manual_seed(seed),
        dtype=matrix.dtype,
    )


def most_seen(probability: float, runs: int) -> float:
    """Three standard deviations above the expected number of failures."""
    return probability * runs + 3 * sqrt(probability * (1 - probability) * runs)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_bounds_enclose_the_norm(shape: tuple[int, int], spectrum: str, scale: float) -> None:
    values = SPECTRA[spectrum](min(shape))
    matrix = with_spectrum(shape, values) * scale
    norm = float(values[0]) * scale
    rounding = 10 * sqrt(max(shape)) * torch.finfo(torch.float32).eps
    assert probe(matrix) >= norm * (1 - rounding)
    for iterations in (0, 1, 5, 40):
        bounds = power(matrix, iterations)
        assert bounds.lower <= norm * (1 + rounding)
        assert bounds.upper >= norm * (1 - rounding)


@pytest.mark.parametrize("probes", [1, 2])
@pytest.mark.parametrize("rank", [1, 30])
def test_probe_bound_fails_as_seldom_as_lemma_4_1_says(rank: int, probes: int) -> None:
    """‖B‖₂ > 10 √(2/π) maxᵢ ‖Bωᵢ‖ with a probability of at most 10^-probes, which rank one attains."""
    runs = 1000
    matrix = with_spectrum((40, 30), slow(rank), dtype=torch.float64)
    failures = sum(probe(matrix, probes=probes, seed=seed) < 1 - 1e-9 for seed in range(runs))
    assert failures <= most_seen(10**-probes, runs)
    assert rank > 1 or probes > 1 or failures >= 0.07 * runs  # no smaller constant would do


def test_probe_bound_is_within_its_factor() -> None:
    """E‖Bω‖² = ‖B‖_F², and none of ten exceeds twice that of a matrix of many dimensions."""
    matrix = with_spectrum((90, 60), slow(60), dtype=torch.float64)
    frobenius = float(torch.linalg.vector_norm(slow(60)))
    for seed in range(50):
        assert frobenius <= probe(matrix, seed=seed) / (10 * sqrt(2 / pi)) <= 2 * frobenius


@pytest.mark.parametrize("iterations", [0, 1, 4])
@pytest.mark.parametrize("rank", [1, 30])
@pytest.mark.parametrize(("failure", "probes"), [(0.1, 1), (0.25, 3)])
def test_upper_bound_fails_as_seldom_as_it_says(failure: float, probes: int, rank: int, iterations: int) -> None:
    runs = 300
    matrix = with_spectrum((40, 30), slow(rank), dtype=torch.float64)
    failures = sum(
        power(matrix, iterations, probes=probes, failure=failure, seed=seed).upper < 1 - 1e-9 for seed in range(runs)
    )
    assert failures <= most_seen(failure, runs)
    assert rank > 1 or failures >= 0.5 * failure * runs  # rank one attains it


@pytest.mark.parametrize("spectrum", ["slow", "fast", "noisy", "flat_then_drop"])
@pytest.mark.parametrize("iterations", [0, 1, 4, 20])
def test_bounds_are_as_close_as_stated(iterations: int, spectrum: str) -> None:
    """upper / lower ≤ [√(2/π) failure^(-1/probes) maxᵢ ‖xᵢ‖]^(1/(2q + 1)): 1.12 for q = 20 and n = 60."""
    matrix = with_spectrum((90, 60), SPECTRA[spectrum](60), dtype=torch.float64)
    for seed in range(10):
        bounds = power(matrix, iterations, seed=seed)
        probes = torch.randn(60, 10, generator=Generator().manual_seed(seed)).double()
        longest = float(torch.linalg.vector_norm(probes, dim=0).max())
        factor = (sqrt(2 / pi) * 10 * longest) ** (1 / (2 * iterations + 1))
        assert bounds.upper <= bounds.lower * factor * (1 + 1e-9)
        assert bounds.failure == 1e-10


def test_no_iteration_is_lemma_4_1() -> None:
    matrix = with_spectrum((90, 60), slow(60), dtype=torch.float64)
    assert power(matrix, 0, probes=4, failure=1e-4).upper == pytest.approx(probe(matrix, probes=4), rel=1e-12)


def test_iterations_tighten_both_bounds() -> None:
    matrix = with_spectrum((90, 60), slow(60), dtype=torch.float64)
    bounds = [power(matrix, iterations) for iterations in (0, 1, 3, 9, 27)]
    lowers, uppers = [bound.lower for bound in bounds], [bound.upper for bound in bounds]
    assert lowers == sorted(lowers)
    assert uppers == sorted(uppers, reverse=True)


def test_zero_has_zero_bounds() -> None:
    bounds = power(torch.zeros(7, 5), 3)
    assert (bounds.lower, bounds.upper, probe(torch.zeros(7, 5))) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_residual_operators_are_the_residual(shape: tuple[int, int]) -> None:
    m, n = shape
    matrix = with_spectrum(shape, slow(min(shape)), dtype=torch.float64)
    rank = max(min(shape) // 4, 1)
    u, s, vh = power_iteration_svd(matrix, rank, power_iterations=1, generator=Generator().manual_seed(0))
    apply, apply_transpose = residual(matrix, u, s, vh)
    explicit = matrix - (u * s) @ vh
    torch.testing.assert_close(apply(torch.eye(n, dtype=torch.float64)), explicit, rtol=0, atol=1e-14)
    torch.testing.assert_close(apply_transpose(torch.eye(m, dtype=torch.float64)), explicit.mT, rtol=0, atol=1e-14)


def test_bounds_certify_an_approximation() -> None:
    """The error of a compressed matrix, to 6 % by its products alone."""
    values = slow(60)
    matrix = with_spectrum((90, 60), values, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    apply, apply_transpose = residual(matrix, u[:, :10], s[:10], vh[:10])
    bounds = power_method_norm(
        apply, apply_transpose, 60, iterations=40, generator=Generator().manual_seed(0), dtype=matrix.dtype
    )
    assert 0.99 * float(values[10]) <= bounds.lower <= float(values[10]) * (1 + 1e-9) <= bounds.upper
    assert bounds.upper <= 1.06 * float(values[10])


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_lanczos_bounds_hold_and_meet(spectrum: str) -> None:
    values = SPECTRA[spectrum](120)
    basis = with_spectrum((120, 120), torch.ones(120), dtype=torch.float64)
    matrix = (basis * values) @ basis.mT
    for seed in range(20):
        generator = Generator().manual_seed(seed)
        bounds = lanczos_norm(lambda x: matrix @ x, 120, steps=12, generator=generator, dtype=torch.float64)
        assert bounds.lower <= float(values[0]) * (1 + 1e-12) + 1e-300
        assert bounds.upper >= float(values[0])
        assert bounds.upper <= 1.1 * float(values[0])


def test_few_lanczos_steps_prove_nothing_and_say_so() -> None:
    generator = Generator().manual_seed(0)
    assert lanczos_norm(lambda x: x, 1000, steps=1, generator=generator).upper == inf
    assert lanczos_norm(lambda x: x, 5, generator=generator).lower == pytest.approx(1)
