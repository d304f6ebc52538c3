from math import sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.adaptive import QB, adaptive_range, randqb_ei, rank_for_energy
from tests.support.matrices import SHAPES, SPECTRA, assert_orthonormal, fast, flat_then_drop, slow, with_spectrum

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64)}


def adaptive(matrix: Tensor, tolerance: float, seed: int = 0, probes: int = 10) -> Tensor:
    return adaptive_range(matrix, tolerance, probes=probes, generator=Generator().manual_seed(seed))


def qb_of(matrix: Tensor, error: float, *, block: int = 8, power_iterations: int = 1, seed: int = 0) -> QB:
    generator = Generator().manual_seed(seed)
    return randqb_ei(matrix, error=error, block=block, power_iterations=power_iterations, generator=generator)


def relative_error(matrix: Tensor, qb: QB) -> float:
    """‖A − q b‖_F / ‖A‖_F in float64."""
    residual = matrix.double() - qb.q.double() @ qb.b.double()
    return float(torch.linalg.matrix_norm(residual) / torch.linalg.matrix_norm(matrix.double()))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_adaptive_range_meets_its_tolerance(shape: tuple[int, int], spectrum: str, scale: float) -> None:
    matrix = with_spectrum(shape, SPECTRA[spectrum](min(shape))) * scale
    for tolerance in (0.3, 0.01):
        basis = adaptive(matrix, tolerance * scale)
        assert_orthonormal(basis)
        assert basis.shape[1] <= min(shape)
        residual = matrix.double() - basis.double() @ (basis.double().mT @ matrix.double())
        assert float(torch.linalg.matrix_norm(residual, ord=2)) <= tolerance * scale


@pytest.mark.parametrize("dtype", EPS, ids=str)
def test_adaptive_range_exceeds_its_tolerance_no_more_often_than_stated(dtype: torch.dtype) -> None:
    """P ≤ min(m, n) · 10^-probes = 0.03 for three probes."""
    matrix, tolerance, runs = with_spectrum((40, 30), fast(30), dtype=dtype), 1e-2, 100
    misses = 0
    for seed in range(runs):
        basis = adaptive(matrix, tolerance, seed, probes=3)
        misses += float(torch.linalg.matrix_norm(matrix - basis @ (basis.mT @ matrix), ord=2)) > tolerance
    assert misses <= 0.03 * runs


def test_adaptive_range_is_near_the_smallest_size_on_decaying_spectra() -> None:
    """The error is overestimated by 8 ‖·‖_F / ‖·‖₂ ≤ 15 for σᵢ = 0.7^i, which is 8 vectors; 8 more allow for chance."""
    tolerance = 1e-2
    smallest = int((fast(60) > tolerance).sum())
    for seed in range(10):
        matrix = with_spectrum((90, 60), fast(60), dtype=torch.float64)
        assert smallest <= adaptive(matrix, tolerance, seed).shape[1] <= smallest + 16


def test_adaptive_range_of_a_matrix_below_the_tolerance_is_empty() -> None:
    matrix = with_spectrum((30, 20), fast(20))
    assert adaptive(matrix, 1000.0).shape == (30, 0)
    assert adaptive(torch.zeros(30, 20), 0.0).shape == (30, 0)


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("rows_used", [90, 8])
def test_adaptive_range_stops_at_rounding(dtype: torch.dtype, rows_used: int) -> None:
    """Rank 6 and tolerance 0: up to two more vectors correct rounding errors; the residual is then 90 · eps ‖A‖_F."""
    matrix = torch.zeros(90, 40, dtype=dtype)
    matrix[:rows_used] = with_spectrum((rows_used, 40), torch.linspace(2, 1, 6), dtype=dtype)
    for seed in range(5):
        basis = adaptive(matrix, 0.0, seed)
        assert_orthonormal(basis)
        assert 6 <= basis.shape[1] <= 8
        residual = matrix.double() - basis.double() @ (basis.double().mT @ matrix.double())
        assert float(torch.linalg.matrix_norm(residual)) <= 90 * EPS[dtype] * float(torch.linalg.matrix_norm(matrix))


def test_adaptive_range_stops_at_full_rank() -> None:
    assert adaptive(torch.eye(12), 1e-3).shape == (12, 12)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_randqb_meets_its_error_and_states_it_exactly(
    shape: tuple[int, int], spectrum: str, dtype: torch.dtype, scale: float
) -> None:
    matrix = with_spectrum(shape, SPECTRA[spectrum](min(shape)), dtype=dtype) * scale
    for error in (0.5, 0.1, 1e-3):
        qb = qb_of(matrix, error)
        assert_orthonormal(qb.q)
        assert qb.q.dtype == qb.b.dtype == dtype
        if spectrum == "zero":
            assert (qb.error, qb.norm) == (0.0, 0.0)
            continue
        assert qb.error <= error or qb.q.shape[1] == min(shape)
        assert qb.norm == pytest.approx(float(torch.linalg.matrix_norm(matrix.double())), rel=1e-9)
        # To 1 % (Yu, Gu & Li 2018, theorem 3), or to the rounding of the residual.
        assert qb.error == pytest.approx(relative_error(matrix, qb), rel=0.01, abs=10 * EPS[dtype])


def test_small_errors_in_float32_are_computed_from_the_residual() -> None:
    """For an error of 1e-4, the difference ‖A‖² − ‖b‖² is rounding, of either sign."""
    values = torch.cat([torch.ones(16), torch.full((24,), 1e-4)])
    matrix = with_spectrum((60, 40), values)
    qb = qb_of(matrix, 1e-3, block=16)
    difference = 1 - (float(torch.linalg.matrix_norm(qb.b.double())) / qb.norm) ** 2
    exact = relative_error(matrix, qb)
    assert abs(difference / exact**2 - 1) > 0.5
    assert qb.error == pytest.approx(exact, rel=0.02)


def test_randqb_stops_at_rounding() -> None:
    matrix = with_spectrum((90, 40), torch.linspace(2, 1, 6))
    qb = qb_of(matrix, 0.0, block=4)
    assert qb.q.shape == (90, 8)
    assert relative_error(matrix, qb) <= 10 * EPS[torch.float32]


def test_blocks_beyond_the_rank_stay_orthonormal() -> None:
    """The range lies in 6 coordinates, so the second block of 4 vectors adds only two dimensions."""
    matrix = torch.zeros(50, 40)
    matrix[:6] = with_spectrum((6, 40), torch.linspace(2, 1, 6))
    qb = qb_of(matrix, 0.0, block=4)
    assert qb.q.shape == (50, 8)
    assert_orthonormal(qb.q)


def test_power_iterations_make_the_basis_smaller() -> None:
    matrix = with_spectrum((150, 100), slow(100))
    sizes = [qb_of(matrix, 0.5, block=2, power_iterations=power_iterations).q.shape[1] for power_iterations in (0, 2)]
    smallest = int((slow(100).square().cumsum(0) < 0.75 * slow(100).square().sum()).sum()) + 1
    assert smallest <= sizes[1] <= smallest + 3
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("spectrum", ["slow", "fast", "noisy", "flat_then_drop"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_rank_for_energy_keeps_the_energy_and_is_never_below_the_true_one(
    shape: tuple[int, int], spectrum: str, dtype: torch.dtype
) -> None:
    values = SPECTRA[spectrum](min(shape))
    matrix = with_spectrum(shape, values, dtype=dtype)
    for share in (0.5, 0.9):
        qb = qb_of(matrix, sqrt(1 - share), power_iterations=2)
        rank = rank_for_energy(qb, share)
        slack = 10 * EPS[dtype]
        true = int((values.square().cumsum(0) < (share - slack) * values.square().sum()).sum()) + 1
        assert true <= rank <= max(1.25 * true, true + 1)  # equal up to what two power iterations miss
        u, s, vh = torch.linalg.svd(qb.b.double(), full_matrices=False)
        kept = qb.q.double() @ (u[:, :rank] * s[:rank]) @ vh[:rank]
        lost = float(torch.linalg.matrix_norm(matrix.double() - kept)) / qb.norm
        assert 1 - lost**2 >= share - slack


def test_rank_for_energy_refuses_a_share_that_the_basis_does_not_contain() -> None:
    qb = qb_of(with_spectrum((60, 40), flat_then_drop(40)), 0.5)
    with pytest.raises(ValueError, match=r"Factorize with a smaller `error`\."):
        rank_for_energy(qb, 0.99)


def test_rank_of_a_zero_matrix_is_one() -> None:
    assert rank_for_energy(qb_of(torch.zeros(30, 20), 0.1), 0.9) == 1
