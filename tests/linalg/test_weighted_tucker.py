from math import sqrt

import pytest
import torch
from torch import Tensor

from lrzip.linalg.tucker import Tucker2, tucker2
from lrzip.linalg.weighted_tucker import channel_moment, weighted_tucker2
from tests.support.tensors import CASES, assert_all_orthogonal, decaying, error, gaussian, of_ranks, product


def moment(shape: tuple[int, int, int], seed: int = 3) -> Tensor:
    """Return the second moment of correlated inputs with very different variances."""
    size = shape[1] * shape[2]
    rows = gaussian(3 * size, size, seed=seed) * torch.logspace(0, -1.5, size, dtype=torch.float64)
    mixed = rows @ gaussian(size, size, seed=seed + 1)
    return mixed.mT @ mixed / len(mixed)


def output_error(x: Tensor, found: Tucker2, second: Tensor) -> float:
    """Return the root of E‖(X − X′)x‖²."""
    missed = (x - product(found)).flatten(1)
    return sqrt(float(((missed @ second) * missed).sum()))


@CASES
def test_white_inputs_give_the_unweighted_decomposition(shape: tuple[int, int, int]) -> None:
    x, white = decaying(shape), torch.eye(shape[1] * shape[2], dtype=torch.float64)
    for ranks in ((1, 1), (3, 2)):
        assert error(x, weighted_tucker2(x, white, ranks)) == pytest.approx(error(x, tucker2(x, ranks)), rel=1e-3)


@CASES
def test_other_inputs_give_smaller_output_errors_than_the_unweighted_decomposition(shape: tuple[int, int, int]) -> None:
    x, second = decaying(shape), moment(shape)
    for ranks in ((1, 1), (3, 2), (2, 3)):
        plain = output_error(x, tucker2(x, ranks), second)
        assert output_error(x, weighted_tucker2(x, second, ranks), second) < plain


@CASES
def test_output_errors_are_at_least_the_tail_of_the_outputs(shape: tuple[int, int, int]) -> None:
    x, second = decaying(shape), moment(shape)
    tail = torch.linalg.svdvals(x.flatten(1) @ torch.linalg.cholesky(second))
    for rank in (1, 2, 3):
        found = output_error(x, weighted_tucker2(x, second, (rank, 3)), second)
        assert found >= float(tail[rank:].norm()) * (1 - 1e-9)
        full = output_error(x, weighted_tucker2(x, second, (rank, shape[1])), second)
        assert full == pytest.approx(float(tail[rank:].norm()), rel=1e-6, abs=1e-9)


@CASES
def test_a_tensor_of_the_given_ranks_is_recovered(shape: tuple[int, int, int]) -> None:
    x = of_ranks(shape, (3, 2))
    second = moment(shape)
    scale = sqrt(float(((x.flatten(1) @ second) * x.flatten(1)).sum()))
    assert output_error(x, weighted_tucker2(x, second, (3, 2)), second) < 1e-6 * scale


def test_channel_moments_are_summed_over_positions() -> None:
    rows = gaussian(50, 4, 9)
    expected = sum(rows[:, :, position].mT @ rows[:, :, position] for position in range(9))
    torch.testing.assert_close(channel_moment(rows.flatten(1).mT @ rows.flatten(1), 4), expected)


@CASES
def test_bases_are_orthonormal_and_slices_of_the_core_orthogonal(shape: tuple[int, int, int]) -> None:
    assert_all_orthogonal(weighted_tucker2(decaying(shape), moment(shape), (3, 2)))
