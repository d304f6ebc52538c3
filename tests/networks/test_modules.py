import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from lrzip.core.kinds import CONVOLUTIONS, LINEAR
from lrzip.core.merge import merge
from lrzip.core.structure import Chain, Reshape, Select, Stage, Sum
from lrzip.networks import modules


def linear(out: int, inner: int) -> nn.Linear:
    return nn.Linear(inner, out, bias=False, dtype=torch.float64)


def test_a_sum_computes_the_sum_of_the_dense_products() -> None:
    branches = [nn.Sequential(linear(2, 7), linear(5, 2)), linear(5, 7), linear(5, 7)]
    pair, dense = Chain((Stage(LINEAR, (2, 7)), Stage(LINEAR, (5, 2)))), Stage(LINEAR, (5, 7))
    network = modules.Sum(branches)
    weights = list(network.state_dict().values())
    assert len(weights) == 4
    x = torch.rand(3, 7, dtype=torch.float64)
    torch.testing.assert_close(network(x), x @ merge(Sum((pair, dense, dense)), weights, dense).mT)


@pytest.mark.parametrize("axis", [1, -1])
def test_a_selection_computes_the_product_with_columns_of_the_identity(axis: int) -> None:
    select = modules.Select(3, axis)
    assert select.state_dict().keys() == {"index"}
    index = torch.tensor([6, 0, 3])
    select.load_state_dict({"index": index})
    if axis == -1:
        weight, x = torch.rand(5, 3).double(), torch.rand(2, 4, 7).double()
        structure, replaced = Chain((Select(3), Stage(LINEAR, (5, 3)))), Stage(LINEAR, (5, 7))
        found, expected = F.linear(select(x), weight), F.linear(x, merge(structure, [index, weight], replaced))
    else:
        weight, x = torch.rand(5, 3, 2, 2).double(), torch.rand(2, 7, 6, 6).double()
        conv = CONVOLUTIONS[2]
        structure, replaced = Chain((Select(3), Stage(conv, (5, 3, 2, 2)))), Stage(conv, (5, 7, 2, 2))
        found, expected = F.conv2d(select(x), weight), F.conv2d(x, merge(structure, [index, weight], replaced))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)], ids=str)
def test_a_rearrangement_computes_the_product_of_a_tensor_train(leading: tuple[int, ...]) -> None:
    parts = (
        Reshape(1, (4, 5), (1, 0), (5, 4)),
        Stage(LINEAR, (4, 4)),
        Reshape(2, (5, 2, 2), (1, 0, 2), (2, 10)),
        Stage(LINEAR, (3, 10)),
        Reshape(2, (2, 3), (0, 1), (6,)),
    )
    network = nn.Sequential(
        *(
            modules.Reshape(part.axes, part.view, part.order, part.shape)
            if isinstance(part, Reshape)
            else linear(*part.shape)
            for part in parts
        )
    )
    weights = list(network.state_dict().values())
    assert len(weights) == 2, "a rearrangement without a bias has no tensors"
    x = torch.rand(*leading, 20, dtype=torch.float64)
    torch.testing.assert_close(network(x), x @ merge(Chain(parts), weights, Stage(LINEAR, (6, 20))).mT)


def test_a_rearrangement_adds_its_bias_to_the_last_axis() -> None:
    reshape = modules.Reshape(2, (2, 3), (0, 1), (6,), bias=True)
    bias = torch.arange(6.0)
    reshape.load_state_dict({"bias": bias})
    x = torch.rand(4, 2, 3)
    torch.testing.assert_close(reshape(x), x.flatten(1) + bias)
