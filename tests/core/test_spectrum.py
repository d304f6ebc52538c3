import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lrzip.core.spectrum import Spectrum
from lrzip.linalg.blocks.subspace import full_subspace
from lrzip.linalg.svd import singular_values
from tests.support.matrices import fast, slow, with_spectrum

EPS = torch.finfo(torch.float32).eps


def spectrum(values: Tensor | list[float], shape: tuple[int, int] | None = None) -> Spectrum:
    values = torch.as_tensor(values, dtype=torch.float64)
    return Spectrum(values, shape or (len(values), len(values)), EPS)


def test_a_flat_spectrum_of_100_takes_95_values_for_95_percent() -> None:
    assert spectrum(torch.ones(100)).rank_for_energy(0.95) == 95
    orthogonal = torch.linalg.qr(torch.randn(100, 100, generator=torch.Generator().manual_seed(0))).Q
    assert spectrum(singular_values(orthogonal)).rank_for_energy(0.95) == 95


@pytest.mark.parametrize("percent", range(1, 101))
def test_every_percentage_of_a_flat_spectrum_is_met_exactly(percent: int) -> None:
    assert spectrum(torch.full((100,), 0.3)).rank_for_energy(percent / 100) == percent


@pytest.mark.parametrize("missing", [1e-3, 1e-6, 1e-9])
def test_an_energy_that_is_barely_missed_needs_one_more_rank(missing: float) -> None:
    found = spectrum([1.0, math.sqrt(2 * missing)])
    assert found.rank_for_energy(1 - 3 * missing) == 1
    assert found.rank_for_energy(1 - missing) == 2


@pytest.mark.parametrize("exponent", [-10, -20, -40])
def test_slack_is_small_beside_what_may_be_left(exponent: int) -> None:
    left = 2.0**exponent
    found = Spectrum(torch.tensor([1.0, (1.05 * left) ** 0.5], dtype=torch.float64), (2, 2), 2.0**-52)
    assert found.rank_for_energy(1 - left) == 2


@given(
    st.lists(st.floats(0.0, 1e6), min_size=1, max_size=30).map(lambda values: sorted(values, reverse=True)),
    st.floats(0.001, 1.0),
)
def test_the_rank_for_an_energy_is_the_smallest_that_keeps_it(values: list[float], energy: float) -> None:
    found = spectrum(values)
    rank = found.rank_for_energy(energy)
    assert 1 <= rank <= len(values)
    assert found.energy(rank) >= energy - 2e-12
    assert rank == 1 or found.tail(rank - 1) ** 2 > (1 - energy) * found.total


@pytest.mark.parametrize("exponent", [-1, -3, -6, -9, -12])
def test_all_of_the_energy_keeps_every_value_above_rounding(exponent: int) -> None:
    eps = torch.finfo(torch.float64).eps
    values = torch.tensor([1.0, 0.5, 10.0**exponent], dtype=torch.float64)
    matrix = with_spectrum((40, 3), values, dtype=torch.float64)
    assert Spectrum(values, (40, 3), eps).rank_for_energy(1.0) == 3
    assert Spectrum(singular_values(matrix), (40, 3), eps).rank_for_energy(1.0) == 3


@pytest.mark.parametrize("rows", [2, 100, 4000, 100_000])
def test_all_of_the_energy_keeps_what_float32_resolves_in_matrices_of_any_size(rows: int) -> None:
    assert spectrum([1.0, 1e-5], (rows, 2)).rank_for_energy(1.0) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [6, 60, 400])
def test_all_of_the_energy_drops_values_that_rounding_made(size: int, dtype: torch.dtype) -> None:
    matrix = with_spectrum((size, size), torch.linspace(2, 1, 5), dtype=dtype)
    found = Spectrum(singular_values(matrix), (size, size), torch.finfo(dtype).eps)
    assert found.rank_for_energy(1.0) == found.numerical_rank == 5


@given(st.floats(-20, 0), st.sampled_from([torch.float32, torch.float64]), st.integers(2, 5000))
def test_a_condition_number_is_given_at_full_numerical_rank(exponent: float, dtype: torch.dtype, rows: int) -> None:
    values = torch.tensor([1.0, 10.0**exponent], dtype=torch.float64)
    found = Spectrum(values, (rows, 2), torch.finfo(dtype).eps)
    assert (found.condition_number is None) == (found.numerical_rank < 2)
    assert found.condition_number in (None, 1 / 10.0**exponent)


def test_tail_and_energy_add_up_to_the_total() -> None:
    found = spectrum(slow(50))
    for rank in (0, 1, 20, 50):
        assert found.tail(rank) ** 2 == pytest.approx((1 - found.energy(rank)) * found.total, abs=1e-12)


def test_a_zero_matrix_has_no_ratios() -> None:
    found = spectrum(torch.zeros(5))
    assert (found.numerical_rank, found.rank_for_energy(0.9), found.energy(1)) == (0, 1, 1.0)
    assert found.condition_number is found.effective_rank is found.stable_rank is found.decay_rate is None


def test_a_singular_matrix_has_no_condition_number() -> None:
    assert spectrum([1.0, 0.5, 0.0]).condition_number is None
    assert spectrum([1.0, 0.5, 1e-6]).condition_number == pytest.approx(1e6)
    assert spectrum([1.0, 0.5, 1e-8]).condition_number is None  # zero to float32 precision


@pytest.mark.parametrize(("shape", "rank"), [((40, 30), 12), ((30, 40), 30), ((7, 1), 1)])
def test_numerical_rank_agrees_with_numpy(shape: tuple[int, int], rank: int) -> None:
    matrix = with_spectrum(shape, torch.ones(rank))
    found = Spectrum(singular_values(matrix), shape, EPS)
    assert found.numerical_rank == np.linalg.matrix_rank(matrix.numpy()) == rank


def test_effective_and_stable_rank_range_from_one_to_the_number_of_values() -> None:
    flat, single = spectrum(torch.ones(20)), spectrum([3.0] + [0.0] * 19)
    assert flat.effective_rank == pytest.approx(20)
    assert flat.stable_rank == pytest.approx(20)
    assert single.effective_rank == pytest.approx(1)
    assert single.stable_rank == pytest.approx(1)


def test_decay_rate_of_a_geometric_spectrum_is_its_logarithm() -> None:
    assert spectrum(fast(12)).decay_rate == pytest.approx(math.log(0.7))


def test_a_rank_is_settled_if_no_error_within_the_slack_changes_it() -> None:
    values = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)  # energies 4, 5 and 6

    def settles(energy: float, slack: float) -> bool:
        return Spectrum(values, (3, 3), EPS, slack).settles(energy)

    assert settles(5 / 6, 0.0)
    assert not settles(5 / 6, 1e-9)
    assert settles(0.75, 0.1)
    assert not settles(0.75, 0.3)
    assert settles(0.5, 0.9)
    assert not settles(0.5, 1.1)


def test_the_spectrum_of_a_subspace_is_that_of_its_matrix() -> None:
    matrix = with_spectrum((30, 20), slow(20))
    found = Spectrum.of(full_subspace(matrix, 3, tolerance=1e-3))
    assert (found.shape, found.eps) == ((30, 20), EPS)
    torch.testing.assert_close(found.values, slow(20), rtol=1e-5, atol=0)
    assert found.slack > 0
    assert found.frobenius_norm == pytest.approx(float(slow(20).norm()))


def test_blocks_have_the_norms_of_their_block_diagonal_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randn(6, 4, dtype=torch.float64, generator=generator) for _ in range(3)]
    whole = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    found = Spectrum.of_blocks(torch.stack([torch.linalg.svdvals(block) for block in blocks]), (6, 4), EPS)
    assert found.spectral_norm == pytest.approx(float(torch.linalg.matrix_norm(whole, ord=2)))
    assert found.frobenius_norm == pytest.approx(float(whole.norm()))
    assert found.operator_norms[2] == pytest.approx(max(float(torch.linalg.svdvals(block)[2]) for block in blocks))
    assert found.squared_tails.sqrt().tolist() == pytest.approx([found.tail(rank) for rank in range(1, 5)])
