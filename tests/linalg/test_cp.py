"""Canonical polyadic decomposition."""

import warnings
from itertools import pairwise
from math import inf

import numpy as np
import pytest
import torch
from tensorly.decomposition import parafac
from torch import Generator, Tensor

from lrzip.linalg.blocks.alternating import least_squares, swept
from lrzip.linalg.blocks.gauss_newton import damped_gauss_newton
from lrzip.linalg.blocks.rank_one_terms import squared_norms
from lrzip.linalg.cp import OrthogonalTerms, cp, error_preserving


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def dense(found: list[Tensor]) -> Tensor:
    return torch.einsum("ar,br,cr,dr->abcd", *found)


def of_rank(rank: int, shape: tuple[int, ...]) -> Tensor:
    return dense([normal(size, rank, seed=10 * rank + mode) for mode, size in enumerate(shape)])


def weight(shape: tuple[int, ...]) -> Tensor:
    """Return a tensor with decaying spectra along its first two modes, like those of trained convolutions."""
    m, n, *_ = shape
    scales = torch.arange(1, m + 1)[:, None, None, None] ** -0.5 * torch.arange(1, n + 1)[:, None, None] ** -0.5
    return normal(*shape) * scales


def decompose(tensor: Tensor, rank: int) -> list[Tensor]:
    return cp(tensor, rank, generator=Generator().manual_seed(0))


def error_of(tensor: Tensor, found: list[Tensor]) -> float:
    return float((tensor - dense(found)).norm() / tensor.norm())


def norms_of(tensor: Tensor, found: list[Tensor]) -> float:
    """Return the sum of the squared norms of the terms, relative to that of the tensor."""
    return float(squared_norms(found).sum() / tensor.square().sum())


@pytest.mark.parametrize(("rank", "shape"), [(1, (8, 6, 3, 3)), (4, (8, 6, 3, 3)), (12, (30, 20, 3, 3))])
def test_tensors_of_known_rank_are_recovered(rank: int, shape: tuple[int, ...]) -> None:
    tensor = of_rank(rank, shape)
    assert error_of(tensor, decompose(tensor, rank)) < 1e-6


def test_errors_decrease_with_the_rank_below_those_of_orthogonal_terms() -> None:
    tensor = weight((12, 8, 3, 3))
    norms = OrthogonalTerms(tensor).norms
    ranks = (1, 3, 6, 12, 20, 72)
    errors = [error_of(tensor, decompose(tensor, rank)) for rank in ranks]
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 1e-7
    for rank, error in zip(ranks, errors, strict=True):
        assert error <= float(norms[rank:].norm() / tensor.norm()) + 1e-7


@pytest.mark.parametrize("shape", [(9, 5, 3, 3), (4, 7, 2, 5)])
def test_orthogonal_terms_miss_the_tail_of_their_norms(shape: tuple[int, ...]) -> None:
    tensor = normal(*shape)
    terms = OrthogonalTerms(tensor)
    assert len(terms.norms) == shape[2] * shape[3] * min(shape[:2])
    for rank in (1, 5, len(terms.norms)):
        found = terms.leading(rank)
        torch.testing.assert_close(squared_norms(found).sqrt(), terms.norms[:rank])
        assert float((tensor - dense(found)).norm()) == pytest.approx(float(terms.norms[rank:].norm()), abs=1e-9)


def test_terms_of_a_degenerate_tensor_stay_bounded_where_alternating_least_squares_diverge() -> None:
    """The sum of three terms is a limit of sums of two (de Silva & Lim 2008, proposition 4.6)."""
    a, b = (torch.eye(6, 2, dtype=torch.float64)[:, [at]] for at in range(2))
    c = torch.ones(3, 1, dtype=torch.float64)
    tensor = dense([a, a, b[:3], c]) + dense([a, b, a[:3], c]) + dense([b, a, a[:3], c])
    plain = [normal(size, 2, seed=mode) for mode, size in enumerate(tensor.shape)]
    norms = []
    for _ in range(4):
        for _ in range(100):
            plain, _ = swept(tensor, plain, least_squares)
        norms.append(norms_of(tensor, plain))
    assert all(later > 1.1 * earlier for earlier, later in pairwise(norms))
    unlimited, _ = damped_gauss_newton(tensor, plain, steps=200, converged=0.0, limit=inf)
    assert norms_of(tensor, unlimited) > 100
    found = decompose(tensor, 2)
    assert norms_of(tensor, found) <= 30
    assert error_of(tensor, found) < 0.1


@pytest.mark.parametrize("init", ["svd", "random"])
@pytest.mark.parametrize(("shape", "rank"), [((16, 16, 3, 3), 12), ((16, 16, 3, 3), 30), ((32, 16, 3, 3), 40)])
def test_errors_and_norms_are_at_most_those_of_tensorly(init: str, shape: tuple[int, ...], rank: int) -> None:
    tensor = weight(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scales, parts = parafac(tensor.numpy(), rank, init=init, n_iter_max=200, tol=1e-7, random_state=0)
    others = [torch.from_numpy(np.ascontiguousarray(part)) for part in parts]
    others[0] = others[0] * torch.from_numpy(scales)
    theirs, found = error_of(tensor, others), decompose(tensor, rank)
    assert error_of(tensor, found) <= 1.01 * theirs
    allowed = max(theirs, error_of(tensor, found)) ** 2 * float(tensor.square().sum())
    assert norms_of(tensor, error_preserving(tensor, found, allowed)) < norms_of(tensor, others)


def test_factors_have_columns_of_equal_norms_and_do_not_depend_on_the_scale() -> None:
    tensor = weight((12, 8, 3, 3))
    found = decompose(tensor, 9)
    for factor in found[1:]:
        torch.testing.assert_close(factor.norm(dim=0), found[0].norm(dim=0))
    torch.testing.assert_close(dense(decompose(1024 * tensor, 9)), 1024 * dense(found), rtol=1e-4, atol=1e-2)


def test_the_same_seed_gives_the_same_factors() -> None:
    tensor = weight((12, 8, 3, 3))
    assert all(one.equal(other) for one, other in zip(decompose(tensor, 9), decompose(tensor, 9), strict=True))


def test_a_small_share_of_the_energy_is_kept() -> None:
    """The allowed increase of the error must not exceed what a single term keeps."""
    tensor = normal(40, 30, 3, 3)
    found = decompose(tensor, 1)
    assert error_of(tensor, found) < 1
    assert norms_of(tensor, found) > 0.9 * (1 - error_of(tensor, found) ** 2)


def test_a_zero_tensor_has_zero_factors() -> None:
    found = decompose(torch.zeros(5, 4, 3, 3), 3)
    assert [tuple(factor.shape) for factor in found] == [(5, 3), (4, 3), (3, 3), (3, 3)]
    assert not any(bool(factor.any()) for factor in found)
