from math import e, pi, sqrt

import pytest
import torch
from torch import Generator

from lrzip.linalg.rangefinder import subspace_iteration
from tests.matrices import SPECTRA, flat_then_drop, with_spectrum


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_basis_is_orthonormal_after_many_iterations(spectrum: str) -> None:
    matrix = with_spectrum((90, 60), SPECTRA[spectrum](60))
    basis = subspace_iteration(matrix, 20, power_iterations=30, generator=Generator().manual_seed(0))
    atol = 20 * sqrt(90) * torch.finfo(torch.float32).eps
    torch.testing.assert_close(basis.mT @ basis, torch.eye(20), rtol=0, atol=atol)


@pytest.mark.parametrize("spectrum", ["slow", "fast", "noisy"])
def test_mean_error_is_within_the_bound_of_theorem_10_5(spectrum: str) -> None:
    """E‖A − QQᵀA‖_F ≤ √(1 + k/(p − 1)) · (Σ_{j>k} σⱼ²)^½ (Halko, Martinsson & Tropp 2011), and not far below it."""
    rank, oversample, runs = 10, 6, 40
    values = SPECTRA[spectrum](60)
    matrix = with_spectrum((90, 60), values, dtype=torch.float64)
    errors = []
    for seed in range(runs):
        basis = subspace_iteration(
            matrix, rank + oversample, power_iterations=0, generator=Generator().manual_seed(seed)
        )
        errors.append(float(torch.linalg.matrix_norm(matrix - basis @ (basis.mT @ matrix))))
    bound = sqrt(1 + rank / (oversample - 1)) * float(torch.linalg.vector_norm(values[rank:]))
    floor = float(torch.linalg.vector_norm(values[rank + oversample :]))
    assert floor <= sum(errors) / runs <= bound


def test_power_scheme_obeys_corollary_10_10() -> None:
    """E‖A − QQᵀA‖₂ ≤ [(1 + √(k/(p−1)) + e√(k+p)/p · √(min(m, n) − k))]^(1/(2q+1)) σ_{k+1}."""
    rank, oversample, power_iterations = 30, 5, 2
    values = flat_then_drop(60)
    matrix = with_spectrum((90, 60), values, dtype=torch.float64)
    constant = 1 + sqrt(rank / (oversample - 1)) + e * sqrt(rank + oversample) / oversample * sqrt(60 - rank)
    for seed in range(10):
        generator = Generator().manual_seed(seed)
        basis = subspace_iteration(matrix, rank + oversample, power_iterations=power_iterations, generator=generator)
        error = float(torch.linalg.matrix_norm(matrix - basis @ (basis.mT @ matrix), ord=2))
        assert error <= constant ** (1 / (2 * power_iterations + 1)) * float(values[rank]) * (1 + 1e-9)
    assert constant > pi  # the bound is not the trivial one
