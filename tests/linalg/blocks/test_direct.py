from math import e, sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.direct import direct_svd
from lrzip.linalg.blocks.rangefinder import power_iteration
from tests.support.matrices import SHAPES, SPECTRA, assert_svd, slow, with_spectrum

EPS = torch.finfo(torch.float32).eps


def basis_of(matrix: Tensor, size: int, power_iterations: int, seed: int = 0) -> Tensor:
    generator = Generator().manual_seed(seed)
    return power_iteration(matrix, size, power_iterations=power_iterations, generator=generator)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_direct_svd_is_the_svd_of_the_projection(shape: tuple[int, int], spectrum: str, scale: float) -> None:
    values = SPECTRA[spectrum](min(shape))
    matrix = with_spectrum(shape, values) * scale
    size = max(min(shape) // 3, 1)
    basis = basis_of(matrix, size, 0)
    u, s, vh = direct_svd(matrix, basis)
    assert_svd(u, s, vh)
    atol = 20 * sqrt(max(shape)) * EPS * float(values[0])
    projected = basis.double() @ (basis.double().mT @ matrix.double()) / scale
    torch.testing.assert_close((u.double() * s.double() / scale) @ vh.double(), projected, rtol=0, atol=atol)
    # Projections never increase singular values.
    assert bool((s.double() / scale <= values[:size] + atol).all())


def test_error_obeys_theorem_9_3_and_corollary_10_10() -> None:
    """‖A − u s vh‖₂ ≤ σ_{k+1} + ‖A − QQᵀA‖₂ after truncation to rank k, with k columns of oversampling; and sᵢ ≤ σᵢ."""
    (m, n), rank, power_iterations = (150, 100), 10, 2
    matrix = with_spectrum((m, n), slow(n), dtype=torch.float64)
    constant = 1 + sqrt(rank / (rank - 1)) + e * sqrt(2 * rank) / rank * sqrt(n - rank)
    best = float(slow(n)[rank])
    for seed in range(10):
        u, s, vh = direct_svd(matrix, basis_of(matrix, 2 * rank, power_iterations, seed))
        error = float(torch.linalg.matrix_norm(matrix - (u[:, :rank] * s[:rank]) @ vh[:rank], ord=2))
        assert best * (1 - 1e-9) <= error <= (1 + constant ** (1 / (2 * power_iterations + 1))) * best
        assert bool((s[:rank] <= slow(n)[:rank] * (1 + 1e-12)).all())
