import numpy as np
import pytest

from lrzip.linalg.blocks import free_energy
from lrzip.linalg.blocks.free_energy import (
    Array,
    FreeEnergy,
    count_above,
    keep_threshold,
    level_bounds,
    minimize,
    signals,
)

ALPHA = 0.5
THRESHOLD = keep_threshold(ALPHA)


def energy_of(squares: Array, size: int) -> FreeEnergy:
    tails = np.append(squares[::-1].cumsum()[::-1], 0.0)
    return FreeEnergy(squares, tails, size, ALPHA, THRESHOLD)


def random_squares(seed: int, count: int = 40) -> Array:
    return np.sort(np.random.default_rng(seed).exponential(size=count) ** 3)[::-1]


@pytest.mark.parametrize("alpha", [0.01, 0.3, 1.0])
def test_the_threshold_is_near_the_approximation_of_the_literature(alpha: float) -> None:
    """τ ≈ 2.5129 √α (Nakajima et al. 2015), exact at α = 1."""
    tau = 2.5129 * alpha**0.5
    assert keep_threshold(alpha) == pytest.approx((1 + tau) * (1 + alpha / tau), rel=1e-4 if alpha == 1 else 0.03)


def test_signals_solve_the_equation_of_the_shrinkage() -> None:
    """x = (1 + τ)(1 + α / τ), of which τ is the larger root."""
    taus = np.array([0.8, 1.0, 5.0, 100.0])
    level = 0.3
    squares = level * (1 + taus) * (1 + ALPHA / taus)
    np.testing.assert_allclose(signals(squares, level, ALPHA), level * taus, rtol=1e-12)


def test_counts_are_those_of_a_direct_comparison() -> None:
    squares = random_squares(0)
    for limit in (0.0, float(squares[7]), float(squares[0]), 2 * float(squares[0])):
        assert count_above(squares, limit) == int((squares > limit).sum())


@pytest.mark.parametrize("seed", range(5))
def test_the_noise_of_all_levels_is_that_of_each_level(seed: int) -> None:
    energy = energy_of(random_squares(seed), 40)
    levels = np.logspace(-3, 0, 20)[:, None]
    ranks = np.array([[energy.rank(level)] for level in levels[:, 0]])
    found = energy.noise(levels, ranks)[0][:, 0]
    np.testing.assert_allclose(found, [energy.noise_at(float(level)) for level in levels[:, 0]], rtol=1e-12)
    expected = [
        energy.squares.sum() - signals(energy.squares[:rank], level, ALPHA).sum()
        for level, rank in zip(levels[:, 0], ranks[:, 0], strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_derivative_of_the_noise_is_its_difference_quotient(seed: int) -> None:
    energy = energy_of(random_squares(seed), 40)
    levels = np.logspace(-3, 0, 20)[:, None]
    ranks = np.array([[energy.rank(level)] for level in levels[:, 0]])
    step = 1e-5 * levels
    quotient = (energy.noise(levels + step, ranks)[0] - energy.noise(levels - step, ranks)[0]) / (2 * step)
    np.testing.assert_allclose(energy.noise(levels, ranks)[1], quotient, rtol=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_the_minimum_is_the_least_of_a_fine_grid_and_a_fixed_point(seed: int) -> None:
    squares = random_squares(seed)
    energy = energy_of(squares, 40)
    low, high = level_bounds(squares, 0.0, 40, ALPHA, THRESHOLD)
    level = minimize(energy, low, high)
    assert low <= level <= high
    grid = np.linspace(low, high, 4000)[:, None]
    least = float(energy.values(np.array([[level]]))[0])
    assert least <= float(energy.values(grid).min()) + 1e-9 * abs(least)
    assert energy.noise_at(level) / 40 == pytest.approx(level, rel=1e-9) or level in (low, high)


def test_thousands_of_singular_values_take_few_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The enclosure leaves few pieces, so no evaluation of all pieces at once is large."""
    sizes: list[int] = []
    noise, noise_at = FreeEnergy.noise, FreeEnergy.noise_at

    def record(self: FreeEnergy, levels: Array, ranks: Array) -> tuple[Array, Array]:
        sizes.append(len(levels))
        return noise(self, levels, ranks)

    def record_one(self: FreeEnergy, level: float) -> float:
        sizes.append(1)
        return noise_at(self, level)

    monkeypatch.setattr(FreeEnergy, "noise", record)
    monkeypatch.setattr(FreeEnergy, "noise_at", record_one)
    squares = np.arange(1, 4097) ** -1.0
    minimize(energy_of(squares, 4096), *level_bounds(squares, 0.0, 4096, ALPHA, THRESHOLD))
    assert sizes
    assert max(sizes) <= free_energy._FEW_PIECES + 1
    assert len(sizes) <= 100
