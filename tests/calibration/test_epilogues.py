import torch
from torch import Tensor, nn
from torch.fx import Node

from lrzip.calibration.epilogues import Epilogue, find_epilogues, inverse
from lrzip.networks.programs.observe import tensor_names
from lrzip.networks.programs.operators import OPERATORS
from lrzip.networks.programs.trace import export_network


def epilogues_of(model: nn.Module, x: Tensor, *, residual: bool = True) -> tuple[list[Epilogue], dict[Node, str]]:
    program = export_network(model.eval(), (x,), {})
    layers = [OPERATORS[node.target].kind for node in program.graph.nodes if node.target in OPERATORS]
    calls = [node for node in program.graph.nodes if node.target in OPERATORS]
    found = find_epilogues(calls, residual=residual)
    assert len(found) == len(layers) > 0
    return list(found.values()), tensor_names(program)


class Residual(nn.Module):
    """A block in which everything follows a layer that can: batch norm, a sum, dropout and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm, self.drop = nn.BatchNorm2d(4), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.first(x))
        out: Tensor = torch.relu(self.drop(self.norm(self.second(inner)) + inner))
        return out


X = torch.zeros(2, 4, 6, 6)


def test_every_part_is_found() -> None:
    (first, second), names = epilogues_of(Residual(), X)
    assert first.bias is not None
    assert names[first.bias] == "first.bias"
    assert (first.norm, first.other, first.rectified) == (None, None, True)
    assert second.bias is None
    assert second.running_mean is not None
    assert names[second.running_mean] == "norm.running_mean"
    assert second.other is not None
    assert "relu" in second.other.name
    assert second.rectified


def test_without_residual_the_sum_ends_the_epilogue() -> None:
    (_, second), _ = epilogues_of(Residual(), X, residual=False)
    assert second.norm is not None
    assert second.other is None
    assert not second.rectified


def test_a_value_that_is_used_twice_ends_the_epilogue() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            out: Tensor = torch.relu(self.norm(y)) * y.mean()
            return out

    (epilogue,), _ = epilogues_of(Twice(), X)
    assert (epilogue.norm, epilogue.other, epilogue.rectified) == (None, None, False)


class Branches(nn.Module):
    """Two layers whose outputs are added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x) + self.second(x)
        return out


def test_of_two_layers_that_are_added_one_corrects_the_other() -> None:
    (first, second), _ = epilogues_of(Branches(), torch.zeros(2, 6))
    assert first.other is not None
    assert first.other.target in OPERATORS
    assert second.other is None


def test_a_branch_is_not_corrected_by_a_layer_that_it_depends_on() -> None:
    class Nested(Branches):
        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            z = torch.tanh(y)
            out: Tensor = self.second(z) + z
            return out

    (first, second), _ = epilogues_of(Nested(), torch.zeros(2, 6))
    assert first.other is None
    assert second.other is not None


def test_inputs_constants_and_broadcasts_are_not_branches() -> None:
    class Added(Branches):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = (self.first(x) + x) * (self.second(x) + x.tanh().mean(1, keepdim=True)).sum()
            return out

    found = epilogues_of(Added(), torch.zeros(2, 6))[0]
    assert [epilogue.other for epilogue in found] == [None, None]


def test_a_branch_behind_a_mutation_is_not_corrected() -> None:
    """It cannot be computed first: the mutation in between would come too late for it, or for the layer."""

    class Mutating(Branches):
        def forward(self, x: Tensor) -> Tensor:
            state = x.tanh()
            y = self.first(x)
            state.add_(1)
            out: Tensor = y + state.sigmoid()
            return out

    (first,), _ = epilogues_of(Mutating(), torch.zeros(2, 6))
    assert first.other is None


def test_a_norm_in_training_mode_is_none() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    (epilogue,), _ = epilogues_of(model, X)
    assert epilogue.norm is None


def test_a_norm_over_other_channels_is_none() -> None:
    """A linear layer on (samples, steps, features) has its channels last, and the batch norm normalizes steps."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(5))
    (epilogue,), _ = epilogues_of(model, torch.zeros(2, 5, 6))
    assert epilogue.norm is None


def test_scaling_is_the_affine_map_of_the_norm() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        assert tensor is not None
        nn.init.normal_(tensor)
    (epilogue,), names = epilogues_of(model, X)
    values = {node: model.state_dict()[name] for node, name in names.items()}
    scale, shift = epilogue.scaling(values)
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(x * scale[:, None, None] + shift[:, None, None], norm(x), atol=1e-5)


def test_dead_channels_have_no_inverse() -> None:
    """A channel that the norm scales by 1e-6 of the largest carries nothing, and its inverse would be 1e6."""
    assert inverse(torch.tensor([2.0, -4.0, 4e-6, 0.0])).tolist() == [0.5, -0.25, 0.0, 0.0]


def test_targets_carry_the_error_of_the_other_branch_through_the_norm() -> None:
    (_, epilogue), names = epilogues_of(Residual(), X)
    model = Residual()
    nn.init.constant_(model.get_parameter("norm.weight"), -2.0)
    dense = {node: model.state_dict()[name] for node, name in names.items()}
    assert epilogue.other is not None
    output, error = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    compressed = {epilogue.other: torch.zeros_like(error)}
    target = epilogue.target(output, dense | {epilogue.other: error}, compressed)
    norm = model.get_submodule("norm").eval()
    with torch.no_grad():
        # The sum is that of the dense program: norm(target) + compressed branch = norm(output) + dense branch.
        assert torch.allclose(norm(target), norm(output) + error, atol=1e-5)
