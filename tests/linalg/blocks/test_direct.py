from math import e, sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.direct import direct_svd, power_iteration_svd
from lrzip.linalg.blocks.rangefinder import gaussian_range
from tests.support.matrices import SHAPES, SPECTRA, slow, with_spectrum

EPS = torch.finfo(torch.float32).eps


def svd(matrix: Tensor, rank: int, power_iterations: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = Generator().manual_seed(seed)
    return power_iteration_svd(matrix, rank, power_iterations=power_iterations, generator=generator)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_direct_svd_is_the_projection(shape: tuple[int, int], spectrum: str, scale: float) -> None:
    values = SPECTRA[spectrum](min(shape))
    matrix = with_spectrum(shape, values) * scale
    size = max(min(shape) // 3, 1)
    basis = gaussian_range(matrix, size, generator=Generator().manual_seed(0))
    u, s, vh = (part.double() for part in direct_svd(matrix, basis))
    atol = 20 * sqrt(max(shape)) * EPS
    identity = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(u.mT @ u, identity, rtol=0, atol=atol)
    torch.testing.assert_close(vh @ vh.mT, identity, rtol=0, atol=atol)
    projected = basis.double() @ (basis.double().mT @ matrix.double()) / scale
    torch.testing.assert_close((u * s / scale) @ vh, projected, rtol=0, atol=atol * float(values[0]))
    # Projections never enlarge singular values.
    assert bool((s / scale <= values[:size] + atol * float(values[0])).all())


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_power_iteration_svd_is_orthonormal_and_descends(shape: tuple[int, int], spectrum: str, scale: float) -> None:
    matrix = with_spectrum(shape, SPECTRA[spectrum](min(shape))) * scale
    for rank in {1, max(min(shape) // 3, 1), min(shape)}:
        u, s, vh = svd(matrix, rank, 4)
        atol = 20 * sqrt(max(shape)) * EPS
        torch.testing.assert_close(u.mT @ u, torch.eye(rank), rtol=0, atol=atol)
        torch.testing.assert_close(vh @ vh.mT, torch.eye(rank), rtol=0, atol=atol)
        assert bool((s[:-1] >= s[1:]).all())
        assert bool((s >= 0).all())


def test_powers_close_the_gap_to_the_optimum_on_slow_decay() -> None:
    matrix, rank = with_spectrum((300, 200), slow(200)), 20
    optimum = float(torch.linalg.vector_norm(slow(200)[rank:]))

    def excess(power_iterations: int) -> float:
        u, s, vh = svd(matrix, rank, power_iterations)
        return float(torch.linalg.matrix_norm(matrix - (u * s) @ vh)) / optimum - 1

    assert excess(0) > 0.03
    assert excess(1) < 0.01
    assert excess(3) < 0.001


def test_error_obeys_theorem_9_3_and_corollary_10_10() -> None:
    """‖A − u s vh‖₂ ≤ σ_{k+1} + ‖A − QQᵀA‖₂ for the cut to rank k, with p = k columns of oversampling; and sᵢ ≤ σᵢ."""
    (m, n), rank, power_iterations = (150, 100), 10, 2
    matrix = with_spectrum((m, n), slow(n), dtype=torch.float64)
    constant = 1 + sqrt(rank / (rank - 1)) + e * sqrt(2 * rank) / rank * sqrt(n - rank)
    best = float(slow(n)[rank])
    for seed in range(10):
        u, s, vh = svd(matrix, rank, power_iterations, seed)
        error = float(torch.linalg.matrix_norm(matrix - (u * s) @ vh, ord=2))
        assert best * (1 - 1e-9) <= error <= (1 + constant ** (1 / (2 * power_iterations + 1))) * best
        assert bool((s <= slow(n)[:rank] * (1 + 1e-12)).all())
