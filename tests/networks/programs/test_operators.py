"""Operators of programs are layers by the positions of their arguments."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from lrzip.networks.programs.operators import bias_of, groups_of, is_layer, signature


def user_of(network: nn.Module, x: Tensor, name: str = "p_weight") -> tuple[Node, Node]:
    """Return the only node that uses a parameter, and the placeholder of that."""
    nodes = {node.name: node for node in torch.export.export(network, (x,)).graph.nodes}
    (user,) = nodes[name].users
    return user, nodes[name]


@pytest.mark.parametrize(
    ("network", "x", "kind", "groups"),
    [
        (nn.Linear(4, 6), torch.ones(2, 4), "linear", 1),
        (nn.Embedding(4, 6), torch.zeros(2, dtype=torch.int64), "embedding", 1),
        (nn.Conv2d(4, 6, 3, groups=2), torch.ones(1, 4, 5, 5), "conv2d", 2),
        (nn.Conv1d(4, 6, 3, padding="same"), torch.ones(1, 4, 5), "conv1d", 1),
        (nn.ConvTranspose2d(4, 6, 3), torch.ones(1, 4, 5, 5), "conv_transpose2d", 1),
    ],
)
def test_calls_of_layers_are_recognized(network: nn.Module, x: Tensor, kind: str, groups: int) -> None:
    user, weight = user_of(network, x)
    assert is_layer(user, weight)
    assert str(signature(user)[0]) == kind
    assert groups_of(user) == groups
    bias = bias_of(user)
    assert (bias.name if bias else None) == ("p_bias" if hasattr(network, "bias") else None)


def test_other_uses_of_a_parameter_are_no_layers() -> None:
    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.matmul(self.weight, x)

    user, weight = user_of(Squared(), torch.ones(4, 4))
    assert not is_layer(user, weight)
