from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lrzip.core.kinds import KINDS
from lrzip.core.merge import merge
from lrzip.core.structure import Chain, Reshape, Select, Stage, Structure, Sum

LINEAR, CONV = KINDS["linear"], KINDS["conv2d"]


def chain(weights: Sequence[Tensor], groups: Sequence[int] = ()) -> Chain:
    kinds = [LINEAR if weight.dim() == 2 else CONV for weight in weights]
    given = groups or [1] * len(weights)
    return Chain(tuple(Stage(k, tuple(w.shape), g) for k, w, g in zip(kinds, weights, given, strict=True)))


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 5))
def test_linear_stages_are_matrices(out: int, inner: int, rank: int) -> None:
    a, b = torch.rand(rank, inner), torch.rand(out, rank)
    torch.testing.assert_close(merge(chain([a, b]), [a, b], Stage(LINEAR, (out, inner))), b @ a)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_convolutions_compute_what_their_product_does(out: int, inner: int, first: int, second: int, size: int) -> None:
    shapes = (first, inner, 1, 1), (second, first, size, 2), (out, second, 1, 1)
    weights = [torch.rand(shape, dtype=torch.float64) for shape in shapes]
    x = expected = torch.rand(2, inner, 5, 6, dtype=torch.float64)
    for weight in weights:
        expected = torch.conv2d(expected, weight)
    dense = merge(chain(weights), weights, Stage(CONV, (out, inner, size, 2)))
    torch.testing.assert_close(torch.conv2d(x, dense), expected)


@pytest.mark.parametrize("groups", [(6, 1), (1, 8), (2, 2), (6, 4)])
def test_grouped_stages_compute_what_their_product_does(groups: tuple[int, int]) -> None:
    first, second = groups
    weights = [torch.rand(24, 6 // first, 3, 1).double(), torch.rand(16, 24 // second, 1, 3).double()]
    x = torch.rand(2, 6, 5, 6).double()
    expected = F.conv2d(F.conv2d(x, weights[0], groups=first), weights[1], groups=second)
    dense = merge(chain(weights, groups), weights, Stage(CONV, (16, 6, 3, 3)))
    torch.testing.assert_close(F.conv2d(x, dense), expected)


def test_a_grouped_layer_keeps_its_groups() -> None:
    weights = [torch.rand(8, 3, 3, 3).double(), torch.rand(20, 2, 1, 1).double()]
    x = torch.rand(2, 12, 5, 6).double()
    expected = F.conv2d(F.conv2d(x, weights[0], groups=4), weights[1], groups=4)
    dense = merge(chain(weights, (4, 4)), weights, Stage(CONV, (20, 3, 3, 3), 4))
    torch.testing.assert_close(F.conv2d(x, dense, groups=4), expected)


def test_branches_are_added_and_channels_selected() -> None:
    a, b, c = torch.rand(2, 7), torch.rand(5, 2), torch.rand(5, 3)
    index = torch.tensor([6, 0, 3])
    structure = Sum((chain([a, b]), Chain((Select(3), Stage(LINEAR, (5, 3))))))
    dense = b @ a
    dense[:, index] += c
    torch.testing.assert_close(merge(structure, [a, b, index, c], Stage(LINEAR, (5, 7))), dense)


def test_features_are_rearranged_as_for_tensor_trains() -> None:
    # W[(m1, m2), (n1, n2)] = sum_r G1[m1, r, n1] G2[m2, r, n2], for sizes 2·3 by 4·5 and rank 2.
    first, second = torch.rand(2, 2, 4), torch.rand(3, 2, 5)
    structure: Structure = Chain(
        (
            Reshape(1, (4, 5), (1, 0), (5, 4)),
            Stage(LINEAR, (4, 4)),  # n1 to (m1, r), for each n2
            Reshape(2, (5, 2, 2), (1, 0, 2), (2, 10)),
            Stage(LINEAR, (3, 10)),  # (n2, r) to m2, for each m1
            Reshape(2, (2, 3), (0, 1), (6,)),
        )
    )
    weights = [first.reshape(4, 4), second.permute(0, 2, 1).reshape(3, 10)]
    expected = torch.einsum("arb,crd->acbd", first, second).reshape(6, 20)
    torch.testing.assert_close(merge(structure, weights, Stage(LINEAR, (6, 20))), expected)


def test_a_missing_tensor_is_an_error() -> None:
    weights = [torch.rand(2, 7), torch.rand(5, 2)]
    with pytest.raises(ValueError, match="1 tensors"):
        merge(chain(weights), weights[:1], Stage(LINEAR, (5, 7)))
