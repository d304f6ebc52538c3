"""The SVD of a product from its factors, against the SVD of the product."""

import pytest
import torch
from torch import Tensor

from lrzip.linalg.low_rank_svd import product_error, product_svd, product_values

SIZES = [(30, 4, 20), (7, 12, 9), (5, 5, 5), (1, 3, 8), (40, 1, 3)]


def factors(sizes: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    m, k, n = sizes
    return torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)


@pytest.mark.parametrize("sizes", SIZES)
def test_values_are_those_of_the_product(sizes: tuple[int, int, int]) -> None:
    left, right = factors(sizes)
    expected = torch.linalg.svdvals(left.double() @ right.double())[: min(sizes)]
    torch.testing.assert_close(product_values(left, right), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_truncation_has_the_least_error(sizes: tuple[int, int, int]) -> None:
    left, right = factors(sizes)
    product = left.double() @ right.double()
    for rank in range(1, min(sizes) + 1):
        found = product_svd(left, right, rank)
        tail = torch.linalg.svdvals(product)[rank:].square().sum().sqrt()
        assert float(torch.dist(product, (found.u * found.s) @ found.vh)) == pytest.approx(float(tail), abs=1e-11)
        torch.testing.assert_close(found.u.mT @ found.u, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_error_is_that_of_the_products() -> None:
    left, right = factors((30, 4, 20))
    other = factors((30, 2, 20))
    dense, guess = left.double() @ right.double(), other[0].double() @ other[1].double()
    expected = float(torch.dist(dense, guess) / torch.linalg.vector_norm(dense))
    assert product_error(left, right, *other) == pytest.approx(expected, rel=1e-12)
    assert product_error(left, right, left, right) < 1e-15
    assert product_error(0 * left, right, *other) == pytest.approx(float(torch.linalg.vector_norm(guess)))
