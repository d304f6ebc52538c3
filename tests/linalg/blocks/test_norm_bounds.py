from math import exp, inf, sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.norm_bounds import NormBounds, lanczos_norm
from tests.support.matrices import SPECTRA, slow, with_spectrum

SIZE = 120


def positive(values: Tensor, seed: int = 0) -> Tensor:
    """Return a symmetric matrix with given eigenvalues and Haar-distributed eigenvectors."""
    basis = with_spectrum((len(values), len(values)), torch.ones(len(values)), dtype=torch.float64, seed=seed)
    matrix: Tensor = (basis * values) @ basis.mT
    return matrix


def bounds_of(matrix: Tensor, *, seed: int = 0, steps: int = 12, probes: int = 8, failure: float = 1e-6) -> NormBounds:
    return lanczos_norm(
        matrix.matmul,
        len(matrix),
        steps=steps,
        probes=probes,
        failure=failure,
        generator=Generator().manual_seed(seed),
        dtype=torch.float64,
    )


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_bounds_enclose_the_norm_within_ten_percent(spectrum: str) -> None:
    values = SPECTRA[spectrum](SIZE)
    matrix = positive(values)
    for seed in range(20):
        bounds = bounds_of(matrix, seed=seed)
        assert bounds.lower <= float(values[0]) * (1 + 1e-12) + 1e-300
        assert float(values[0]) <= bounds.upper <= 1.1 * float(values[0])


@pytest.mark.parametrize("failure", [1e-9, 1e-3])
@pytest.mark.parametrize("probes", [1, 8])
def test_the_upper_bound_is_where_theorem_4_2_gives_the_failure_probability(probes: int, failure: float) -> None:
    """[1.648 √n exp(−√ε (2k − 1))]^probes = failure for lower = (1 − ε) upper (Kuczyński & Woźniakowski 1992)."""
    steps = 14
    bounds = bounds_of(positive(slow(SIZE)), steps=steps, probes=probes, failure=failure)
    epsilon = 1 - bounds.lower / bounds.upper
    found = (1.648 * sqrt(SIZE) * exp(-sqrt(epsilon) * (2 * steps - 1))) ** probes
    assert found == pytest.approx(failure, rel=1e-6)
    assert bounds.failure == failure


def test_a_smaller_failure_probability_or_fewer_start_vectors_give_a_larger_upper_bound() -> None:
    matrix = positive(slow(SIZE))
    likely, unlikely = (bounds_of(matrix, failure=failure) for failure in (1e-2, 1e-12))
    assert likely.lower == unlikely.lower
    assert likely.upper < unlikely.upper


def test_the_upper_bound_fails_no_more_often_than_stated() -> None:
    """One start vector and three steps on a single large eigenvalue among 400, the worst case for a random start."""
    values = torch.cat([torch.ones(1), torch.linspace(0.9, 0.0, 399)]).double()
    failures = sum(bounds_of(values.diag(), steps=5, probes=1, failure=0.1, seed=seed).upper < 1 for seed in range(200))
    # Three standard deviations above the expected number.
    assert failures <= 0.1 * 200 + 3 * sqrt(0.1 * 0.9 * 200)


def test_few_steps_give_no_upper_bound() -> None:
    generator = Generator().manual_seed(0)
    assert lanczos_norm(lambda x: x, 1000, steps=1, generator=generator).upper == inf


def test_a_krylov_space_of_all_dimensions_is_exact() -> None:
    assert lanczos_norm(lambda x: x, 5, generator=Generator().manual_seed(0)).lower == pytest.approx(1)
    assert bounds_of(positive(slow(30)), steps=5).lower == pytest.approx(1, rel=1e-12)
