from math import sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.svd import singular_values
from lrzip.linalg.vbmf import NoiseRank, noise_rank
from tests.support.matrices import SHAPES, SPECTRA, slow, with_spectrum

LARGE = {"tall": (300, 100), "wide": (100, 300), "square": (160, 160)}
# τ / √α at the threshold: 2.513 at α = 1 (Nakajima et al. 2015), and 2.533 at α = 1 / 3, as for these shapes.
THRESHOLD = 2.53


def gaussian(shape: tuple[int, int], seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def planted(shape: tuple[int, int], rank: int, strength: float, *, noise: float = 1.0, seed: int = 0) -> Tensor:
    """Return noise plus `rank` directions with γ² / (M σ²) = strength · √α; none below 1 can be detected."""
    size, length = min(shape), max(shape)
    signal = noise * sqrt(strength * sqrt(size / length) * length)
    values = torch.full((rank,), signal, dtype=torch.float64)
    return with_spectrum(shape, values, dtype=torch.float64, seed=seed) + noise * gaussian(shape, seed + 1000)


def noise_rank_of(matrix: Tensor) -> NoiseRank:
    m, n = matrix.shape
    return noise_rank(torch.linalg.svdvals(matrix), (m, n))


def free_energies(values: Tensor, shape: tuple[int, int], variances: Tensor) -> Tensor:
    """Return the free energy (count,) of noise variances (count,) by the terms ψ₀ and ψ₁ of the paper."""
    size, length = min(shape), max(shape)
    alpha = size / length
    x = values.square() / (length * variances[:, None])
    middle = x - (1 + alpha)
    tau = (middle + (middle.square() - 4 * alpha).clamp(min=0).sqrt()) / 2
    psi1 = torch.log1p(tau) + alpha * torch.log1p(tau / alpha) - tau
    # Keeping a value is optional, so it lowers the free energy: no threshold is needed where the larger root exists.
    kept = middle > 2 * sqrt(alpha)
    return (x - x.log() + torch.where(kept, psi1, 0).clamp(max=0)).sum(1)


def random_spectrum(seed: int) -> tuple[Tensor, tuple[int, int]]:
    generator = Generator().manual_seed(seed)
    size, more = (int(torch.randint(low, 30, (1,), generator=generator)) for low in (2, 0))
    uniform = torch.rand(size, dtype=torch.float64, generator=generator)
    steepness = 1 + 8 * float(torch.rand(1, generator=generator))
    values = torch.exp(-steepness * uniform) if seed % 2 else uniform.square() + 0.01
    return values.sort(descending=True).values, (size, size + more)


def variational_bayes(matrix: Tensor, *, starts: int, steps: int, seed: int) -> tuple[float, Tensor]:
    """Return the noise variance and B Aᵀ of the least free energy that coordinate descent finds from several starts.

    V = B Aᵀ + noise with q(A) q(B) Gaussian, the prior variances of every column of A and B and the noise variance
    updated in turn, each to its optimum: the iterative algorithm that the analytic solution replaces.
    """
    size, length = matrix.shape
    generator = Generator().manual_seed(seed)
    a = torch.randn(starts, length, size, dtype=torch.float64, generator=generator)
    b = torch.randn(starts, size, size, dtype=torch.float64, generator=generator)
    eye = torch.eye(size, dtype=torch.float64)
    cov_a = cov_b = eye.expand(starts, size, size)
    prior_a = prior_b = torch.ones(starts, size, dtype=torch.float64)
    noise = matrix.square().mean() * torch.logspace(-2, 0, starts, dtype=torch.float64)
    for _ in range(steps):
        level = noise[:, None, None]
        cov_a = level * torch.linalg.inv(b.mT @ b + size * cov_b + level * torch.diag_embed(1 / prior_a))
        a = matrix.mT @ b @ cov_a / level
        cov_b = level * torch.linalg.inv(a.mT @ a + length * cov_a + level * torch.diag_embed(1 / prior_b))
        b = matrix @ a @ cov_b / level
        moment_a, moment_b = a.mT @ a + length * cov_a, b.mT @ b + size * cov_b
        prior_a = moment_a.diagonal(dim1=1, dim2=2) / length
        prior_b = moment_b.diagonal(dim1=1, dim2=2) / size
        cross = (matrix * (b @ a.mT)).sum((1, 2))
        noise = (matrix.square().sum() - 2 * cross + (moment_a * moment_b.mT).sum((1, 2))) / matrix.numel()
    # At an optimum in the priors and the noise, the sum of all quadratic terms is constant.
    energy = matrix.numel() * noise.log()
    energy += length * (prior_a.log().sum(1) - torch.logdet(cov_a)) + size * (
        prior_b.log().sum(1) - torch.logdet(cov_b)
    )
    best = int(energy.argmin())
    return float(noise[best]), b[best] @ a[best].mT


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
def test_the_planted_rank_is_recovered_above_the_threshold(shape: tuple[int, int], seed: int) -> None:
    for rank in (1, 4, 10):
        assert noise_rank_of(planted(shape, rank, 4 * THRESHOLD, seed=seed)).rank == rank


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
def test_values_below_the_threshold_are_taken_for_noise(shape: tuple[int, int], seed: int) -> None:
    # Above 1 it exceeds the singular values of the noise (Baik & Silverstein 2006), here by 0.7 % only.
    matrix = planted(shape, 4, 0.5 * THRESHOLD, seed=seed)
    assert noise_rank_of(matrix).rank == 0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", (SHAPES | LARGE).values(), ids=SHAPES | LARGE)
def test_noise_alone_has_rank_zero(shape: tuple[int, int], seed: int) -> None:
    found = noise_rank_of(gaussian(shape, seed))
    assert found.rank == 0
    assert found.values.shape == (0,)


@pytest.mark.parametrize("noise", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
def test_the_noise_variance_is_near_the_true_one(shape: tuple[int, int], noise: float) -> None:
    found = noise_rank_of(planted(shape, 5, 8 * THRESHOLD, noise=noise))
    # Six standard deviations √(2 / mn) of the mean of mn squares, and the noise that 5 directions absorb.
    m, n = shape
    assert found.noise_variance == pytest.approx(noise**2, rel=6 * sqrt(2 / (m * n)) + 5 * (m + n) / (m * n))


@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
def test_planted_values_are_geometric_means_of_observed_and_shrunk_ones(shape: tuple[int, int]) -> None:
    # In large matrices, γ² / (M σ²) is (1 + ν)(1 + α / ν) for a planted ν (Baik & Silverstein 2006), so that τ is ν.
    rank, strength = 5, 4 * THRESHOLD
    ratios = []
    for seed in range(20):
        matrix = planted(shape, rank, strength, seed=seed)
        ratios.append(torch.linalg.svdvals(matrix)[:rank] * noise_rank_of(matrix).values)
    planted_square = strength * sqrt(min(shape) * max(shape))
    # A planted γ is perturbed by about σ, so the mean of a hundred γ² by 2 σ / (10 γ) of it; four times that.
    tolerance = 4 * 2 / (10 * sqrt(planted_square))
    assert float(torch.cat(ratios).mean()) == pytest.approx(planted_square, rel=tolerance)


@pytest.mark.parametrize("seed", range(2))
def test_coordinate_descent_on_the_free_energy_converges_to_the_analytic_solution(seed: int) -> None:
    shape = (6, 10)
    matrix = planted(shape, 2, 12 * THRESHOLD, seed=seed)
    found = noise_rank_of(matrix)
    noise, product = variational_bayes(matrix, starts=12, steps=3000, seed=seed)
    assert found.rank == 2
    # Pruned columns vanish as 1 / steps.
    assert found.noise_variance == pytest.approx(noise, rel=1e-3)
    values = torch.linalg.svdvals(product)
    torch.testing.assert_close(values[:2], found.values, rtol=1e-3, atol=0)
    assert float(values[2]) < 1e-2 * float(values[0])


@pytest.mark.parametrize("seed", range(60))
def test_no_noise_variance_of_a_fine_grid_has_less_free_energy(seed: int) -> None:
    values, shape = random_spectrum(seed)
    found = noise_rank(values, shape)
    mean = float(values.square().sum()) / (shape[0] * shape[1])
    grid = mean * torch.logspace(-8, 0.1, 20_000, dtype=torch.float64)
    energies = free_energies(values, shape, torch.cat([torch.tensor([found.noise_variance]).double(), grid]))
    assert float(energies[0]) <= float(energies[1:].min()) + 1e-10 * float(energies[0].abs() + 1)


def test_the_free_energy_has_many_minima() -> None:
    # The premise of the test above: with a single minimum, a golden section search would do.
    many = 0
    for seed in range(60):
        values, shape = random_spectrum(seed)
        grid = float(values.square().mean()) / max(shape) * torch.logspace(-8, 0.1, 5_000, dtype=torch.float64)
        inner = free_energies(values, shape, grid)
        many += int(((inner[1:-1] < inner[:-2]) & (inner[1:-1] < inner[2:])).sum()) > 1
    assert many > 20


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
def test_scaling_keeps_the_rank_and_scales_the_noise(shape: tuple[int, int], scale: float) -> None:
    values = torch.linalg.svdvals(planted(shape, 5, 4 * THRESHOLD))
    found, scaled = noise_rank(values, shape), noise_rank(values * scale, shape)
    assert scaled.rank == found.rank == 5
    assert scaled.noise_variance == pytest.approx(found.noise_variance * scale * scale, rel=1e-9)
    torch.testing.assert_close(scaled.values, found.values * scale, rtol=1e-9, atol=0)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_transposing_changes_nothing(shape: tuple[int, int], spectrum: str) -> None:
    values = SPECTRA[spectrum](min(shape))
    found, transposed = noise_rank(values, shape), noise_rank(values, shape[::-1])
    assert (transposed.rank, transposed.noise_variance) == (found.rank, found.noise_variance)
    assert transposed.values.equal(found.values)


@pytest.mark.parametrize("count", [20, 60, 99])
def test_the_remaining_values_may_be_given_as_a_sum_of_squares(count: int) -> None:
    values = torch.linalg.svdvals(planted((300, 100), 5, 4 * THRESHOLD))
    found = noise_rank(values, (300, 100))
    part = noise_rank(values[:count], (300, 100), residual=float(values[count:].square().sum()))
    assert part.rank == found.rank == 5
    assert part.noise_variance == pytest.approx(found.noise_variance, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rank", [1, 7, 30])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("shape", [(96, 72), (72, 96), (64, 64)], ids=["tall", "wide", "square"])
def test_exactly_low_rank_has_that_rank(shape: tuple[int, int], scale: float, rank: int, dtype: torch.dtype) -> None:
    matrix = with_spectrum(shape, scale * slow(rank), dtype=dtype)
    found = noise_rank(singular_values(matrix), shape)
    assert found.rank == rank
    assert found.noise_variance <= (scale * torch.finfo(dtype).eps) ** 2


@pytest.mark.parametrize("shape", [(5, 5), (5, 7), (5, 200), (40, 41)])
def test_factors_of_the_rank_are_always_smaller_than_the_matrix(shape: tuple[int, int]) -> None:
    m, n = shape
    for rank in range(1, min(m, n) + 1):
        found = noise_rank((torch.arange(min(m, n)) < rank).double(), shape)
        assert found.rank * (m + n) < m * n
        assert found.rank == rank or rank * (m + n) >= m * n


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_zero_matrix_has_rank_zero_and_no_noise(shape: tuple[int, int]) -> None:
    found = noise_rank(torch.zeros(min(shape), dtype=torch.float64), shape)
    assert (found.rank, found.noise_variance) == (0, 0.0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1)])
def test_a_single_row_is_taken_for_noise(shape: tuple[int, int]) -> None:
    found = noise_rank(torch.tensor([3.0], dtype=torch.float64), shape)
    assert found.rank == 0
    assert found.noise_variance == pytest.approx(9 / max(shape))


@pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
def test_more_noise_lowers_the_rank_step_by_step_to_zero(shape: tuple[int, int]) -> None:
    signal = with_spectrum(shape, torch.logspace(2, 1, 10, dtype=torch.float64), dtype=torch.float64)
    noise = gaussian(shape, 1)
    ranks = [noise_rank_of(signal + level * noise).rank for level in torch.logspace(-3, 1, 25).tolist()]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] == 10
    assert ranks[-1] == 0
    assert len(set(ranks)) >= 6
