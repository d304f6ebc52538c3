from math import sqrt

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.tucker import Tucker2, balanced, channel_moment, tucker2, tucker2_within

SHAPES = {"kernel": (20, 14, 9), "wide": (6, 30, 4), "matrix": (18, 12, 1), "few": (4, 3, 25)}
CASES = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def product(found: Tucker2) -> Tensor:
    return torch.einsum("rsp,mr,ns->mnp", found.core, found.outer, found.inner)


def decaying(shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Return a tensor whose spectra fall along both modes."""
    m, n, _ = shape
    scales = torch.arange(1, m + 1).double()[:, None, None] * torch.arange(1, n + 1).double()[:, None]
    left, right = (torch.linalg.qr(gaussian(size, size, seed=seed + 1)).Q for size in (m, n))
    return torch.einsum("abp,ma,nb->mnp", gaussian(*shape, seed=seed) / scales, left, right)


def error(x: Tensor, found: Tucker2) -> float:
    return float(torch.linalg.vector_norm(x - product(found)))


def tails(x: Tensor, ranks: tuple[int, int]) -> list[float]:
    unfoldings = x.flatten(1), x.transpose(0, 1).flatten(1)
    return [float(torch.linalg.svdvals(u)[rank:].square().sum()) for u, rank in zip(unfoldings, ranks, strict=True)]


@CASES
def test_a_tensor_of_these_ranks_is_met(shape: tuple[int, int, int]) -> None:
    m, n, p = shape
    x = torch.einsum("rsp,mr,ns->mnp", gaussian(3, 2, p), gaussian(m, 3, seed=1), gaussian(n, 2, seed=2))
    assert error(x, tucker2(x, (3, 2))) < 1e-7 * float(x.norm())  # by Gram matrices, the root of the precision


@CASES
def test_errors_lie_between_the_tails_of_the_unfoldings(shape: tuple[int, int, int]) -> None:
    """De Lathauwer, De Moor & Vandewalle 2000, 'A multilinear singular value decomposition', property 10."""
    x = decaying(shape)
    for ranks in ((1, 1), (3, 2), (2, 3), (shape[0], 2), (3, shape[1])):
        squares = tails(x, ranks)
        least, most = sqrt(max(squares)), sqrt(sum(squares))
        assert least * (1 - 1e-6) - 1e-6 <= error(x, tucker2(x, ranks)) <= most * (1 + 1e-9) + 1e-6


def test_of_a_matrix_it_is_the_truncated_svd() -> None:
    x = decaying((18, 12, 1))
    for rank in (1, 4, 9):
        assert error(x, tucker2(x, (rank, rank))) == pytest.approx(sqrt(tails(x, (rank, rank))[0]), rel=1e-9)


def test_iterating_is_better_than_the_truncated_higher_order_svd() -> None:
    x = gaussian(20, 14, 9)
    outer, inner = (torch.linalg.svd(u).U for u in (x.flatten(1), x.transpose(0, 1).flatten(1)))
    core = torch.einsum("mnp,mr,ns->rsp", x, outer[:, :5], inner[:, :4])
    start = error(x, Tucker2(outer[:, :5], core, inner[:, :4]))
    assert error(x, tucker2(x, (5, 4))) < 0.995 * start


def moment(shape: tuple[int, int, int], seed: int = 3) -> Tensor:
    """Return the second moment of correlated inputs of very different sizes."""
    size = shape[1] * shape[2]
    rows = gaussian(3 * size, size, seed=seed) * torch.logspace(0, -1.5, size, dtype=torch.float64)
    mixed = rows @ gaussian(size, size, seed=seed + 1)
    return mixed.mT @ mixed / len(mixed)


def seen_error(x: Tensor, found: Tucker2, second: Tensor) -> float:
    missed = (x - product(found)).flatten(1)
    return sqrt(float(((missed @ second) * missed).sum()))


@CASES
def test_on_white_inputs_it_is_the_one_nearest_to_the_tensor(shape: tuple[int, int, int]) -> None:
    x, white = decaying(shape), torch.eye(shape[1] * shape[2], dtype=torch.float64)
    for ranks in ((1, 1), (3, 2)):
        assert error(x, tucker2_within(x, white, ranks)) == pytest.approx(error(x, tucker2(x, ranks)), rel=1e-3)


@CASES
def test_on_other_inputs_it_is_nearer_than_that(shape: tuple[int, int, int]) -> None:
    x, second = decaying(shape), moment(shape)
    for ranks in ((1, 1), (3, 2), (2, 3)):
        plain = seen_error(x, tucker2(x, ranks), second)
        assert seen_error(x, tucker2_within(x, second, ranks), second) < plain


@CASES
def test_on_inputs_no_error_is_below_the_tail_of_the_outputs(shape: tuple[int, int, int]) -> None:
    x, second = decaying(shape), moment(shape)
    tail = torch.linalg.svdvals(x.flatten(1) @ torch.linalg.cholesky(second))
    for rank in (1, 2, 3):
        found = seen_error(x, tucker2_within(x, second, (rank, 3)), second)
        assert found >= float(tail[rank:].norm()) * (1 - 1e-9)
        whole = seen_error(x, tucker2_within(x, second, (rank, shape[1])), second)
        assert whole == pytest.approx(float(tail[rank:].norm()), rel=1e-6, abs=1e-9)


@CASES
def test_on_inputs_a_tensor_of_these_ranks_is_met(shape: tuple[int, int, int]) -> None:
    m, n, p = shape
    x = torch.einsum("rsp,mr,ns->mnp", gaussian(3, 2, p), gaussian(m, 3, seed=1), gaussian(n, 2, seed=2))
    second = moment(shape)
    scale = sqrt(float(((x.flatten(1) @ second) * x.flatten(1)).sum()))
    assert seen_error(x, tucker2_within(x, second, (3, 2)), second) < 1e-6 * scale


def test_moments_of_channels_are_those_of_their_places() -> None:
    rows = gaussian(50, 4, 9)
    expected = sum(rows[:, :, place].mT @ rows[:, :, place] for place in range(9))
    torch.testing.assert_close(channel_moment(rows.flatten(1).mT @ rows.flatten(1), 4), expected)


@pytest.mark.parametrize("within", [False, True], ids=["tensor", "inputs"])
@CASES
def test_bases_are_orthonormal_and_slices_of_the_core_orthogonal(shape: tuple[int, int, int], within: bool) -> None:
    x = decaying(shape)
    found = tucker2_within(x, moment(shape), (3, 2)) if within else tucker2(x, (3, 2))
    for basis in (found.outer, found.inner):
        torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    for slices in (found.core.flatten(1), found.core.transpose(0, 1).flatten(1)):
        gram = slices @ slices.mT
        norms = gram.diagonal()
        assert float((gram - norms.diag()).abs().max()) < 1e-10 * float(norms.max())
        assert bool((norms[:-1] >= norms[1:]).all())


@CASES
def test_balancing_keeps_the_product_and_evens_out_norms(shape: tuple[int, int, int]) -> None:
    found = tucker2(decaying(shape), (3, 2))
    even = balanced(found)
    torch.testing.assert_close(product(even), product(found))
    core = even.core.square().sum(2)
    torch.testing.assert_close(even.outer.square().sum(0), core.sum(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(even.inner.square().sum(0), core.sum(0), rtol=1e-5, atol=0)


def test_no_other_scaling_has_smaller_norms() -> None:
    even = balanced(tucker2(decaying((20, 14, 9)), (5, 4)))
    least = sum(float(part.square().sum()) for part in (even.outer, even.core, even.inner))
    for seed in range(20):
        left, right = (torch.exp(0.1 * gaussian(size, seed=seed)) for size in (5, 4))
        scaled = even.outer * left, even.core / left[:, None, None] / right[:, None], even.inner * right
        assert sum(float(part.square().sum()) for part in scaled) > least


def test_zeros_stay_zeros() -> None:
    even = balanced(tucker2(torch.zeros(6, 5, 9), (3, 2)))
    assert product(even).count_nonzero() == 0
    assert all(bool(part.isfinite().all()) for part in (even.outer, even.core, even.inner))
