from math import sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.hermitian import eigh_within, nystrom, single_pass_eigh
from lrzip.linalg.blocks.rangefinder import gaussian_range, subspace_iteration
from tests.support.matrices import SPECTRA, fast, slow

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64)}
SIZES = [1, 2, 50]


def with_eigenvalues(n: int, values: Tensor, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Return a symmetric matrix with given nonzero eigenvalues and Haar-distributed eigenvectors."""
    generator = Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(n, len(values), dtype=torch.float64, generator=generator)).Q
    matrix: Tensor = (q * values.double()) @ q.mT
    return ((matrix + matrix.mT) / 2).to(dtype)


def indefinite(values: Tensor) -> Tensor:
    return values * torch.where(torch.arange(len(values)) % 2 == 0, 1.0, -1.0)


def basis_of(matrix: Tensor, size: int, seed: int = 0) -> Tensor:
    return gaussian_range(matrix, size, generator=Generator().manual_seed(seed))


def spectral(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, ord=2))


def rebuilt(values: Tensor, vectors: Tensor) -> Tensor:
    return (vectors * values) @ vectors.mT


def assert_eigendecomposition(values: Tensor, vectors: Tensor) -> None:
    """Ascending finite values, orthonormal vectors."""
    assert bool(values.isfinite().all())
    assert bool((values[:-1] <= values[1:]).all())
    atol = 20 * sqrt(vectors.shape[0]) * EPS[vectors.dtype]
    identity = torch.eye(vectors.shape[1], dtype=vectors.dtype)
    torch.testing.assert_close(vectors.mT @ vectors, identity, rtol=0, atol=atol)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("n", SIZES)
def test_results_are_eigendecompositions(n: int, spectrum: str, dtype: torch.dtype, scale: float) -> None:
    values = SPECTRA[spectrum](n)
    positive = with_eigenvalues(n, values, dtype=dtype) * scale
    mixed = with_eigenvalues(n, indefinite(values), dtype=dtype) * scale
    for size in {1, max(n // 3, 1), n}:
        basis = basis_of(mixed, size)
        assert_eigendecomposition(*eigh_within(mixed, basis))
        assert_eigendecomposition(*nystrom(positive, basis_of(positive, size)))
        assert_eigendecomposition(*nystrom(positive, basis))
        omega = torch.randn(n, size, dtype=dtype, generator=Generator().manual_seed(1))
        assert_eigendecomposition(*single_pass_eigh(mixed @ omega, omega, size))


@pytest.mark.parametrize("spectrum", ["slow", "fast", "noisy", "flat_then_drop"])
def test_error_of_eigh_within_is_at_most_twice_that_of_the_basis(spectrum: str) -> None:
    matrix = with_eigenvalues(60, indefinite(SPECTRA[spectrum](60)))
    for seed in range(10):
        basis = basis_of(matrix, 20, seed)
        values, vectors = eigh_within(matrix, basis)
        projected = basis @ (basis.mT @ matrix)
        torch.testing.assert_close(rebuilt(values, vectors), projected @ basis @ basis.mT, rtol=0, atol=1e-12)
        assert spectral(matrix - rebuilt(values, vectors)) <= 2 * spectral(matrix - projected)


@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_nystrom_is_at_least_as_good_as_the_projection(spectrum: str, dtype: torch.dtype) -> None:
    """‖A − (AQ)(QᵀAQ)⁺(AQ)ᵀ‖₂ ≤ ‖A − QQᵀAQQᵀ‖₂ and ≤ ‖A − QQᵀA‖₂, but for some ν = √n eps ‖AQ‖_F."""
    n = 60
    matrix = with_eigenvalues(n, SPECTRA[spectrum](n), dtype=dtype)
    slack = 4 * sqrt(n) * EPS[dtype] * float(torch.linalg.matrix_norm(matrix))
    for seed in range(10):
        basis = basis_of(matrix, 20, seed)
        error = spectral(matrix - rebuilt(*nystrom(matrix, basis)))
        assert error <= spectral(matrix - basis @ (basis.mT @ matrix)) + slack
        assert error <= spectral(matrix - rebuilt(*eigh_within(matrix, basis))) + slack


def test_nystrom_is_much_better_on_decaying_spectra() -> None:
    matrix = with_eigenvalues(60, fast(60))
    bases = [basis_of(matrix, 15, seed) for seed in range(10)]
    errors, others = (
        sum(spectral(matrix - rebuilt(*method(matrix, basis))) for basis in bases) for method in (nystrom, eigh_within)
    )
    assert errors < 0.6 * others


@pytest.mark.parametrize("dtype", EPS, ids=str)
def test_nystrom_of_a_singular_matrix_is_exact(dtype: torch.dtype) -> None:
    """Rank 5 in a basis of 20: the core alone has no Cholesky factor."""
    matrix = with_eigenvalues(60, torch.linspace(1, 0.5, 5), dtype=dtype)
    basis = basis_of(matrix, 20)
    core = basis.mT @ matrix @ basis
    assert int(torch.linalg.cholesky_ex((core + core.mT) / 2).info) > 0
    slack = 4 * sqrt(60) * EPS[dtype] * float(torch.linalg.matrix_norm(matrix))
    assert spectral(matrix - rebuilt(*nystrom(matrix, basis))) <= slack


def test_nystrom_survives_a_basis_that_misses_the_range() -> None:
    """Its image is rounding alone."""
    vectors = torch.linalg.qr(torch.randn(60, 60, generator=Generator().manual_seed(0))).Q
    for rank in (1, 10, 40):
        matrix = vectors[:, :rank] @ vectors[:, :rank].mT
        values, found = nystrom((matrix + matrix.mT) / 2, vectors[:, rank:])
        assert_eigendecomposition(values, found)
        assert float(values.max()) <= 1e-4


def test_nystrom_refuses_negative_eigenvalues() -> None:
    matrix = with_eigenvalues(20, -slow(20))
    with pytest.raises(RuntimeError, match="positive-definite"):
        nystrom(matrix, basis_of(matrix, 5))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_single_pass_is_exact_for_low_rank(scale: float) -> None:
    values = indefinite(torch.linspace(2, 1, 6))
    matrix = with_eigenvalues(50, values, dtype=torch.float32) * scale
    for seed in range(5):
        omega = torch.randn(50, 12, generator=Generator().manual_seed(seed))
        found, vectors = single_pass_eigh(matrix @ omega, omega, 6)
        # Rounding of the sketch over the least singular value of a 6 × 12 Gaussian matrix, about √12 − √6 = 1.
        torch.testing.assert_close(found / scale, values.sort().values.float(), rtol=0, atol=100 * EPS[torch.float32])
        torch.testing.assert_close(rebuilt(found / scale, vectors), matrix / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("spectrum", ["slow", "fast", "noisy"])
def test_single_pass_error_is_that_of_its_least_squares(spectrum: str) -> None:
    """‖B − QᵀAQ‖_F ≤ ‖QᵀA(I − QQᵀ)Ω‖_F / σ_min(QᵀΩ): BQᵀΩ is the projection of QᵀY on symmetric solutions."""
    matrix, rank = with_eigenvalues(60, indefinite(SPECTRA[spectrum](60))), 8
    for seed in range(10):
        omega = torch.randn(60, 16, dtype=torch.float64, generator=Generator().manual_seed(seed))
        values, q = single_pass_eigh(matrix @ omega, omega, rank)
        difference = torch.diag(values) - q.mT @ matrix @ q
        unseen = q.mT @ matrix @ (omega - q @ (q.mT @ omega))
        bound = float(torch.linalg.matrix_norm(unseen) / torch.linalg.svdvals(q.mT @ omega)[-1])
        error = float(torch.linalg.matrix_norm(difference))
        assert 0.01 * bound <= error <= bound * (1 + 1e-9)


def test_single_pass_needs_neither_scale_nor_rank_of_its_sketch() -> None:
    omega = torch.randn(30, 10, generator=Generator().manual_seed(0))
    assert_eigendecomposition(*single_pass_eigh(torch.zeros(30, 10), omega, 4))
    assert_eigendecomposition(*single_pass_eigh(torch.zeros(30, 10), torch.zeros(30, 10), 4))
    q = subspace_iteration(omega @ omega.mT, 10, power_iterations=0, generator=Generator().manual_seed(0))
    assert_eigendecomposition(*single_pass_eigh(q @ q.mT @ omega[:, :1].expand(30, 10), omega, 4))
