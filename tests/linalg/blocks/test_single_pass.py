from math import sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks import single_pass
from lrzip.linalg.blocks.single_pass import single_pass_qb, single_pass_svd
from tests.support.matrices import SHAPES, SPECTRA, assert_svd, fast, slow, with_spectrum


def svd(matrix: Tensor, rank: int, *, oversample: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return single_pass_svd(matrix, rank, oversample=oversample, generator=Generator().manual_seed(seed))


def error_of(matrix: Tensor, u: Tensor, s: Tensor, vh: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix - (u * s) @ vh))


def theorem_4_3(values: Tensor, size: int, co_size: int) -> float:
    """The smallest bound on E‖A − q x‖_F² of theorem 4.3 over all ρ."""
    energies = [float(values[rho:].square().sum()) for rho in range(size - 1)]
    bounds = ((1 + rho / (size - rho - 1)) * energy for rho, energy in enumerate(energies))
    return (1 + size / (co_size - size - 1)) * min(bounds)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_results_are_singular_value_decompositions(shape: tuple[int, int], spectrum: str, scale: float) -> None:
    matrix = with_spectrum(shape, SPECTRA[spectrum](min(shape))) * scale
    for rank in {1, max(min(shape) // 6, 1), min(shape)}:
        u, s, vh = svd(matrix, rank)
        assert s.shape == (rank,)
        assert_svd(u, s, vh)


@pytest.mark.parametrize("spectrum", ["slow", "fast", "noisy"])
def test_mean_square_error_is_within_the_bound_of_theorem_4_3(spectrum: str) -> None:
    """E‖A − q x‖_F² ≤ (1 + f(k, l)) (1 + f(ρ, k)) Σ_{j>ρ} σⱼ², sharp to a factor of three except for fast decay."""
    size, co_size, runs = 13, 27, 20
    values = SPECTRA[spectrum](80)
    matrix = with_spectrum((120, 80), values, dtype=torch.float64)
    squares = 0.0
    for seed in range(runs):
        q, x = single_pass_qb(matrix, size, co_size=co_size, generator=Generator().manual_seed(seed))
        squares += float((matrix - q @ x).square().sum()) / runs
    bound = theorem_4_3(values, size, co_size)
    assert float(values[size:].square().sum()) <= squares <= bound
    assert spectrum == "fast" or bound <= 3 * squares


@pytest.mark.parametrize("spectrum", ["slow", "fast", "noisy"])
def test_truncation_adds_at_most_the_error_again_and_the_optimum(spectrum: str) -> None:
    """‖A − [q x]_r‖ ≤ 2 ‖A − q x‖ + ‖A − [A]_r‖ by the triangle inequality, with theorem 4.3 for ‖A − q x‖."""
    rank, runs = 6, 20
    size = 2 * rank + 1
    values = SPECTRA[spectrum](80)
    matrix = with_spectrum((120, 80), values, dtype=torch.float64)
    optimum = float(torch.linalg.vector_norm(values[rank:]))
    mean = sum(error_of(matrix, *svd(matrix, rank, seed=seed)) for seed in range(runs)) / runs
    assert optimum <= mean <= optimum + 2 * sqrt(theorem_4_3(values, size, 2 * size + 1))


def test_a_co_range_sketch_of_all_rows_gives_the_projection() -> None:
    matrix = with_spectrum((60, 40), slow(40), dtype=torch.float64)
    q, x = single_pass_qb(matrix, 12, co_size=60, generator=Generator().manual_seed(0))
    torch.testing.assert_close(x, q.mT @ matrix, rtol=0, atol=1e-13)


def test_a_matrix_of_the_given_rank_is_recovered() -> None:
    values = torch.linspace(2, 1, 6, dtype=torch.float64)
    matrix = with_spectrum((120, 80), values, dtype=torch.float64)
    for seed in range(5):
        u, s, vh = svd(matrix, 6, seed=seed)
        torch.testing.assert_close(s, values, rtol=1e-10, atol=0)
        torch.testing.assert_close((u * s) @ vh, matrix, rtol=0, atol=1e-10)


def test_more_oversampling_brings_the_error_to_the_optimum() -> None:
    matrix, rank = with_spectrum((150, 100), slow(100)), 6
    optimum = float(torch.linalg.vector_norm(slow(100)[rank:]))
    bare, doubled, full = (
        sum(error_of(matrix, *svd(matrix, rank, oversample=oversample, seed=seed)) for seed in range(5)) / 5
        for oversample in (0, 40, 100)
    )
    assert full == pytest.approx(optimum, rel=1e-5)
    assert full < doubled < bare < 1.5 * optimum


def test_the_size_of_row_blocks_changes_only_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = with_spectrum((96, 40), fast(40), dtype=torch.float64)
    u, s, vh = svd(matrix, 5)
    monkeypatch.setattr(single_pass, "_BLOCK_ROWS", 7)
    again, values, rows = svd(matrix, 5)
    torch.testing.assert_close((again * values) @ rows, (u * s) @ vh, rtol=0, atol=1e-13)


def test_every_row_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the loop over row blocks reads the matrix."""
    monkeypatch.setattr(single_pass, "_BLOCK_ROWS", 10)
    seen: list[int] = []
    split = torch.split

    def record(tensor: Tensor, size: int, dim: int = 0) -> tuple[Tensor, ...]:
        blocks: tuple[Tensor, ...] = split(tensor, size, dim)
        seen.extend(block.shape[0] for block in blocks if tensor is matrix)
        return blocks

    matrix = with_spectrum((45, 30), slow(30))
    monkeypatch.setattr(torch, "split", record)
    svd(matrix, 4)
    assert seen == [10, 10, 10, 10, 5]
