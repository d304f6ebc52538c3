from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.networks.programs.trainable import network_of
from tests.support.networks import seeded


class Several(nn.Module):
    """Batch norms with and without weights and statistics, dropout, and a constant that no state_dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False))
        self.free = nn.BatchNorm1d(8, track_running_stats=False)
        self.drop = nn.Dropout(0.3)
        self.register_buffer("scale", torch.full((8,), 2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x))).mean((2, 3))
        out: Tensor = self.drop(self.free(self.block(x)) * self.scale)
        return out


class Functional(nn.Module):
    """A batch norm whose statistics have names of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(3))
        self.register_buffer("spread", torch.ones(3))
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.average, self.spread, self.scale, training=self.training)  # type: ignore[arg-type]


def exported(model: nn.Module, *shape: int) -> torch.export.ExportedProgram:
    return torch.export.export(model, (torch.zeros(4, *shape),), dynamic_shapes=({0: torch.export.Dim("batch")},))


@pytest.mark.parametrize("training", [True, False])
def test_a_program_computes_the_outputs_of_its_module_in_both_modes(training: bool) -> None:
    """In training it draws the same numbers and updates the same statistics, whichever mode it was exported in."""
    model = seeded(Several).train(training)
    network = network_of(exported(model, 3, 8, 8), Path("a.pt2"))
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for mode in (False, True, False):
        outputs = []
        for module in (model, network):
            torch.manual_seed(0)
            outputs.append(module.train(mode)(x))
            outputs[-1].square().sum().backward()
        assert torch.equal(*outputs)
    state = network.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert all(torch.equal(p.grad, gradients[n]) for n, p in model.named_parameters())  # type: ignore[arg-type]


def test_statistics_of_other_names_stay_frozen_or_are_refused() -> None:
    network = network_of(exported(seeded(Functional), 3, 5), Path("a.pt2"))
    x = 3 + torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network.train()(x), seeded(Functional)(x))
    assert torch.equal(network.state_dict()["average"], torch.zeros(3))
    with pytest.raises(UnsupportedCheckpoint, match=r"was exported in training mode with `aten\.batch_norm"):
        network_of(exported(Functional().train(), 3, 5), Path("a.pt2"))


def test_the_batch_must_be_dynamic() -> None:
    program = torch.export.export(seeded(Several), (torch.zeros(4, 3, 8, 8),))
    with pytest.raises(UnsupportedCheckpoint, match=r"takes `x` only in the shape \(4, 3, 8, 8\)"):
        network_of(program, Path("a.pt2"))
