"""Updates of one factor at a time."""

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.alternating import least_norm, least_squares, swept
from lrzip.linalg.blocks.rank_one_terms import grams_except, products, scaled_into, squared_error, squared_norms

SHAPE, RANK = (6, 5, 3, 4), 7


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


TENSOR = normal(*SHAPE, seed=9)
ENERGY = float(TENSOR.square().sum())


def factors() -> list[Tensor]:
    return scaled_into([normal(size, RANK, seed=mode) for mode, size in enumerate(SHAPE)], 0)


def missed(found: list[Tensor]) -> float:
    return float((TENSOR - torch.einsum("ar,br,cr,dr->abcd", *found)).square().sum())


def test_least_squares_have_no_gradient() -> None:
    first, *others = factors()
    product = products(TENSOR, [first, *others])[0]
    gram = grams_except([first, *others], 0)
    found = least_squares(product, gram)
    torch.testing.assert_close(found @ gram, product)


def test_least_squares_of_equal_terms_have_the_least_norm() -> None:
    first, *others = ([*factor.mT[:3], factor.mT[0]] for factor in factors())
    columns = [torch.stack(part, 1) for part in (first, *others)]
    found = least_squares(products(TENSOR, columns)[0], grams_except(columns, 0))
    torch.testing.assert_close(found[:, 0], found[:, 3])


def test_sweeps_of_least_squares_never_increase_the_error() -> None:
    found, errors = factors(), [missed(factors())]
    for _ in range(10):
        found, product = swept(TENSOR, found, least_squares)
        errors.append(missed(found))
        assert squared_error(ENERGY, product, found, 0) == pytest.approx(errors[-1])
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[1]


@pytest.mark.parametrize("share", [1.001, 1.1, 2.0])
def test_the_least_norm_has_the_allowed_error(share: float) -> None:
    first, *others = factors()
    product, gram = products(TENSOR, [first, *others])[0], grams_except([first, *others], 0)
    best = least_squares(product, gram)
    allowed = min(share * missed([best, *others]), 0.99 * ENERGY)
    found = least_norm(ENERGY, allowed)(product, gram)
    assert missed([found, *others]) == pytest.approx(allowed, rel=1e-6)
    assert found.norm() < best.norm()
    # A ridge regression: what is left of the normal equations is a multiple of the factor.
    ratios = (product - found @ gram) / found
    torch.testing.assert_close(ratios, ratios[0, 0].expand_as(ratios), rtol=1e-4, atol=0)


def test_sweeps_of_least_norms_reduce_the_norms_at_the_same_error() -> None:
    found = factors()
    for _ in range(30):
        found, _ = swept(TENSOR, found, least_squares)
    allowed, norms = 1.01 * missed(found), [float(squared_norms(found).sum())]
    for _ in range(5):
        found, _ = swept(TENSOR, found, least_norm(ENERGY, allowed))
        norms.append(float(squared_norms(found).sum()))
        assert missed(found) <= allowed * (1 + 1e-9)
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < 0.99 * norms[0]
