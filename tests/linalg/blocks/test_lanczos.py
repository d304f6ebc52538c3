from math import sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.lanczos import Ritz, block_lanczos, block_size
from tests.support.matrices import SPECTRA, slow, with_spectrum

SIZE = 400
# Spectra whose leading eigenvalues are not separated from those that follow.
UNPROVEN = ("flat", "flat_then_drop", "nearly_flat", "noisy")


def positive(values: Tensor, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Return a symmetric matrix with given eigenvalues and Haar-distributed eigenvectors."""
    vectors = with_spectrum((len(values), len(values)), torch.ones(len(values)), dtype=torch.float64, seed=seed)
    matrix: Tensor = (vectors * values.double()) @ vectors.mT
    return ((matrix + matrix.mT) / 2).to(dtype)


def start(matrix: Tensor, rank: int, generator: Generator) -> Tensor:
    return torch.randn(len(matrix), block_size(rank), generator=generator, dtype=matrix.dtype)


def lanczos(matrix: Tensor, rank: int, tolerance: float = 1e-3, limit: int = SIZE, seed: int = 0) -> Ritz | None:
    trace, generator = float(matrix.trace()), Generator().manual_seed(seed)
    return block_lanczos(
        matrix.matmul,
        rank,
        start=start(matrix, rank, generator),
        trace=trace,
        tolerance=tolerance,
        limit=limit,
        generator=generator,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_vectors_miss_at_most_the_energy_of_their_bound(spectrum: str, dtype: torch.dtype) -> None:
    values = SPECTRA[spectrum](SIZE).square()
    matrix = positive(values, dtype)
    for rank in (5, 60):
        ritz = lanczos(matrix, rank)
        if ritz is None:  # the norm of the complement is not known precisely enough to tell wanted from unwanted ones
            assert spectrum in UNPROVEN
            continue
        eps = torch.finfo(dtype).eps * float(values[0])
        captured = float((ritz.vectors.double() * (matrix.double() @ ritz.vectors.double())).sum())
        missed = float(values[:rank].sum()) - captured
        assert -rank * SIZE * eps <= missed <= ritz.missed + rank * SIZE * eps
        discarded = max(float(matrix.trace()) - float(ritz.values.sum()), 0.0)
        assert ritz.missed <= 1e-3 * discarded + 4 * rank * eps
        identity = torch.eye(rank, dtype=dtype)
        atol = 20 * sqrt(SIZE) * torch.finfo(dtype).eps
        torch.testing.assert_close(ritz.vectors.mT @ ritz.vectors, identity, rtol=0, atol=atol)


def test_ritz_values_are_below_the_eigenvalues_by_at_most_the_bound() -> None:
    values = slow(SIZE).square()
    matrix = positive(values)
    for seed in range(5):
        ritz = lanczos(matrix, 30, tolerance=0.2, seed=seed)
        assert ritz is not None
        below = values[:30] - ritz.values
        assert float(below.min()) >= -1e-13
        assert 1e-12 < float(below.sum()) <= ritz.missed  # not exact yet, so that the bound is tested


@pytest.mark.parametrize("rank", [20, 100, 140])
def test_clusters_wider_than_a_block_do_not_hide(rank: int) -> None:
    # The Krylov space of 64 start vectors contains at most 64 eigenvectors of each distinct eigenvalue.
    values = torch.where(torch.arange(600) < 140, 9.0, torch.linspace(2, 1, 600).double())
    matrix, generator = positive(values, torch.float32), Generator().manual_seed(0)
    ritz = block_lanczos(
        matrix.matmul,
        rank,
        start=start(matrix, rank, generator),
        trace=float(values.sum()),
        tolerance=1e-3,
        limit=600,
        generator=generator,
    )
    # They are found in the complement of the space, which proves nothing then.
    assert ritz is None


def test_an_eigenvalue_slightly_above_the_wanted_ones_does_not_hide() -> None:
    # 8 of the first 40 are outside of any Krylov space of 32 start vectors, and few steps do not find them.
    values = torch.where(torch.arange(600) < 40, 1.05, torch.linspace(1, 0.5, 600).double())
    matrix, generator = positive(values), Generator().manual_seed(0)
    for tolerance in (1e-2, 1e-3):
        ritz = block_lanczos(
            matrix.matmul,
            40,
            start=start(matrix, 40, generator),
            trace=float(values.sum()),
            tolerance=tolerance,
            limit=400,
            generator=generator,
        )
        missed = float(values[:40].sum() - ritz.values.sum()) if ritz else 0.0
        assert missed <= (ritz.missed if ritz else 0.0) + 1e-9


def test_a_flat_spectrum_reaches_the_limit() -> None:
    assert lanczos(positive(torch.linspace(1.0, 0.99, SIZE)), 20, tolerance=1e-9, limit=250) is None


def test_a_matrix_of_lower_rank_than_wanted_gets_orthonormal_vectors() -> None:
    values = torch.cat([torch.arange(12, 0, -1), torch.zeros(SIZE - 12)])
    ritz = lanczos(positive(values, torch.float32), 20)
    assert ritz is not None
    torch.testing.assert_close(ritz.values[:12], values[:12].double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(ritz.vectors.mT @ ritz.vectors, torch.eye(20), rtol=0, atol=1e-4)
