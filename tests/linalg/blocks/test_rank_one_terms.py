"""Sums of rank-one tensors."""

import pytest
import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.rank_one_terms import (
    MODES,
    equalized,
    grams_except,
    products,
    scaled_into,
    squared_error,
    squared_norms,
)

SHAPE, RANK = (6, 5, 3, 4), 7
LETTERS = "abcd"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def factors() -> list[Tensor]:
    return [normal(size, RANK, seed=mode) for mode, size in enumerate(SHAPE)]


def dense(found: list[Tensor]) -> Tensor:
    return torch.einsum("ar,br,cr,dr->abcd", *found)


@pytest.mark.parametrize("mode", range(MODES))
def test_products_and_grams_are_those_of_the_khatri_rao_product(mode: int) -> None:
    others = [at for at in range(MODES) if at != mode]
    pieces = ",".join(f"{LETTERS[at]}r" for at in others)
    columns = "".join(LETTERS[at] for at in others)
    khatri_rao = torch.einsum(f"{pieces}->{columns}r", *(factors()[at] for at in others)).flatten(0, 2)
    tensor = normal(*SHAPE, seed=9)
    unfolding = tensor.movedim(mode, 0).flatten(1)
    torch.testing.assert_close(products(tensor, factors())[mode], unfolding @ khatri_rao)
    torch.testing.assert_close(grams_except(factors(), mode), khatri_rao.mT @ khatri_rao)


@pytest.mark.parametrize("mode", range(MODES))
def test_the_squared_error_is_that_of_the_difference(mode: int) -> None:
    tensor = normal(*SHAPE, seed=9)
    found = squared_error(float(tensor.square().sum()), products(tensor, factors())[mode], factors(), mode)
    assert found == pytest.approx(float((tensor - dense(factors())).square().sum()))


@pytest.mark.parametrize("mode", range(MODES))
def test_scales_do_not_change_the_sum(mode: int) -> None:
    scaled, equal = scaled_into(factors(), mode), equalized(factors())
    torch.testing.assert_close(dense(scaled), dense(factors()))
    torch.testing.assert_close(dense(equal), dense(factors()))
    torch.testing.assert_close(equal[mode].norm(dim=0), equal[0].norm(dim=0))
    for other in set(range(MODES)) - {mode}:
        torch.testing.assert_close(scaled[other].norm(dim=0), torch.ones(RANK, dtype=torch.float64))
    torch.testing.assert_close(scaled[mode].square().sum(0), squared_norms(factors()))


def test_zero_terms_stay_zero() -> None:
    found = factors()
    found[2][:, 3] = 0
    for other in (equalized(found), scaled_into(found, 1)):
        assert all(bool(factor.isfinite().all()) for factor in other)
        torch.testing.assert_close(dense(other), dense(found))
