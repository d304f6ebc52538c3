from math import sqrt

import pytest
import torch
from torch import Tensor

from lrzip.linalg.tucker import Tucker2, balanced, tucker2
from tests.support.tensors import CASES, assert_all_orthogonal, decaying, error, gaussian, of_ranks, product


def tails(x: Tensor, ranks: tuple[int, int]) -> list[float]:
    """Return the squared tails of both unfoldings."""
    unfoldings = x.flatten(1), x.transpose(0, 1).flatten(1)
    return [float(torch.linalg.svdvals(u)[rank:].square().sum()) for u, rank in zip(unfoldings, ranks, strict=True)]


@CASES
def test_a_tensor_of_the_given_ranks_is_recovered(shape: tuple[int, int, int]) -> None:
    x = of_ranks(shape, (3, 2))
    # Bases come from Gram matrices, which halve the number of exact digits.
    assert error(x, tucker2(x, (3, 2))) < 1e-7 * float(x.norm())


@CASES
def test_errors_lie_between_the_tails_of_the_unfoldings(shape: tuple[int, int, int]) -> None:
    """De Lathauwer, De Moor & Vandewalle 2000, 'A multilinear singular value decomposition', property 10."""
    x = decaying(shape)
    for ranks in ((1, 1), (3, 2), (2, 3), (shape[0], 2), (3, shape[1])):
        squares = tails(x, ranks)
        least, most = sqrt(max(squares)), sqrt(sum(squares))
        assert least * (1 - 1e-6) - 1e-6 <= error(x, tucker2(x, ranks)) <= most * (1 + 1e-9) + 1e-6


def test_the_decomposition_of_a_matrix_is_its_truncated_svd() -> None:
    x = decaying((18, 12, 1))
    for rank in (1, 4, 9):
        assert error(x, tucker2(x, (rank, rank))) == pytest.approx(sqrt(tails(x, (rank, rank))[0]), rel=1e-9)


def test_sweeps_improve_on_the_truncated_higher_order_svd() -> None:
    x = gaussian(20, 14, 9)
    outer, inner = (torch.linalg.svd(u).U for u in (x.flatten(1), x.transpose(0, 1).flatten(1)))
    core = torch.einsum("mnp,mr,ns->rsp", x, outer[:, :5], inner[:, :4])
    start = error(x, Tucker2(outer[:, :5], core, inner[:, :4]))
    assert error(x, tucker2(x, (5, 4))) < 0.995 * start


@pytest.mark.parametrize("seed", range(4))
def test_sweeps_continue_until_another_one_gains_nothing(seed: int) -> None:
    """A single sweep from the higher-order SVD leaves up to 2 % of the squared error to gain, here at least 0.1 %."""
    x, ranks = gaussian(20, 14, 9, seed=seed), (5, 4)
    start = torch.linalg.svd(x.transpose(0, 1).flatten(1)).U[:, : ranks[1]]
    gains = [relative_gain(x, ranks, inner) for inner in (start, one_sweep(x, ranks, start), tucker2(x, ranks).inner)]
    assert gains[0] > gains[1] > 1e-3
    assert -1e-12 <= gains[2] <= 1e-4


def one_sweep(x: Tensor, ranks: tuple[int, int], inner: Tensor) -> Tensor:
    """Return the optimal inner basis for the optimal outer basis for an inner basis, by LAPACK."""
    outer = torch.linalg.svd(torch.einsum("mnp,ns->msp", x, inner).flatten(1)).U[:, : ranks[0]]
    basis: Tensor = torch.linalg.svd(torch.einsum("mnp,mr->nrp", x, outer).flatten(1)).U[:, : ranks[1]]
    return basis


def relative_gain(x: Tensor, ranks: tuple[int, int], inner: Tensor) -> float:
    """Return the decrease of the squared error by another sweep, relative to the squared error."""
    before, after = (best_squared_error(x, ranks, basis) for basis in (inner, one_sweep(x, ranks, inner)))
    return (before - after) / before


def best_squared_error(x: Tensor, ranks: tuple[int, int], inner: Tensor) -> float:
    """Return the squared error of the optimal outer basis and core for an inner basis."""
    captured = torch.linalg.svdvals(torch.einsum("mnp,ns->msp", x, inner).flatten(1))[: ranks[0]]
    return float(x.square().sum() - captured.square().sum())


@CASES
def test_bases_are_orthonormal_and_slices_of_the_core_orthogonal(shape: tuple[int, int, int]) -> None:
    assert_all_orthogonal(tucker2(decaying(shape), (3, 2)))


@CASES
def test_balancing_keeps_the_product_and_equalizes_norms(shape: tuple[int, int, int]) -> None:
    found = tucker2(decaying(shape), (3, 2))
    even = balanced(found)
    torch.testing.assert_close(product(even), product(found))
    core = even.core.square().sum(2)
    torch.testing.assert_close(even.outer.square().sum(0), core.sum(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(even.inner.square().sum(0), core.sum(0), rtol=1e-5, atol=0)


def test_no_other_scaling_has_a_smaller_sum_of_squares() -> None:
    even = balanced(tucker2(decaying((20, 14, 9)), (5, 4)))
    least = sum(float(part.square().sum()) for part in (even.outer, even.core, even.inner))
    for seed in range(20):
        left, right = (torch.exp(0.1 * gaussian(size, seed=seed)) for size in (5, 4))
        scaled = even.outer * left, even.core / left[:, None, None] / right[:, None], even.inner * right
        assert sum(float(part.square().sum()) for part in scaled) > least


def test_a_zero_tensor_is_balanced() -> None:
    even = balanced(tucker2(torch.zeros(6, 5, 9), (3, 2)))
    assert product(even).count_nonzero() == 0
    assert all(bool(part.isfinite().all()) for part in (even.outer, even.core, even.inner))
