"""Programs are run to compare, measure and time them."""

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lrzip.networks.programs.run import difference_of, differences


def exported(scale: float) -> ExportedProgram:
    class Scale(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return scale * x, x

    return torch.export.export(Scale(), (torch.tensor([3.0, 4.0]),))


def test_differences_are_relative_to_the_norm() -> None:
    difference = difference_of("y", torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    assert (difference.absolute, difference.relative) == (0.5, 0.1)


def test_outputs_of_other_shapes_differ_infinitely() -> None:
    assert difference_of("y", torch.zeros(2), torch.zeros(3)).relative == torch.inf


def test_programs_are_compared_on_the_inputs_of_the_first() -> None:
    first, second = differences(exported(1), exported(1.5))
    assert (first.absolute, first.relative) == (2.0, 0.5)
    assert (second.absolute, second.relative) == (0.0, 0.0)
