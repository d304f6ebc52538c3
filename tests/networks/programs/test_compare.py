"""Programs are compared on inputs that their outputs depend on."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lrzip.core.errors import NotCompared
from lrzip.core.moments import Arguments
from lrzip.networks.inputs import InputShape
from lrzip.networks.programs.compare import compare_programs, difference_of
from lrzip.networks.programs.trials import index_limits, randomized


class Scale(nn.Module):
    def __init__(self, scale: float, constant: float) -> None:
        super().__init__()
        self.scale, self.constant = scale, constant

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.scale * x, self.constant * torch.ones(3)


def exported(scale: float, x: Tensor, constant: float = 1) -> ExportedProgram:
    return torch.export.export(Scale(scale, constant), (x,))


X = torch.tensor([3.0, 4.0])


def test_differences_are_relative_to_the_norm() -> None:
    difference = difference_of("y", torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    assert (difference.absolute, difference.relative) == (0.5, 0.1)


def test_outputs_of_other_shapes_differ_infinitely() -> None:
    assert difference_of("y", torch.zeros(2), torch.zeros(3)).relative == torch.inf


def test_programs_are_compared_on_the_inputs_of_the_first() -> None:
    found = compare_programs(exported(1, X), exported(1.5, 2 * X, 2), (), ())
    (first,) = found.differences
    assert (first.absolute, first.relative) == (2.0, 0.5)
    assert found.inputs == "the inputs that the program stores"
    assert "does not depend on the inputs that the program stores" in str(found.not_compared)


def test_stored_inputs_of_one_value_are_replaced() -> None:
    zeros = torch.zeros(2)
    (difference,) = compare_programs(exported(1, zeros), exported(1.5, zeros), (), ()).differences
    assert difference.relative == pytest.approx(0.5)


def test_samples_precede_shapes_and_shapes_stored_inputs() -> None:
    shapes = [InputShape.parse("2")]
    samples: Sequence[Arguments] = [((10 * X,), {})]
    by_samples = compare_programs(exported(1, X), exported(1.5, X), samples, shapes)
    assert (by_samples.inputs, by_samples.differences[0].absolute) == ("the calibration data", 20.0)
    assert compare_programs(exported(1, X), exported(1.5, X), (), shapes).inputs == "random inputs of 2"


def test_a_program_whose_outputs_are_all_constant_is_not_compared() -> None:
    first, second = exported(0, X), exported(0, X, 2)
    with pytest.raises(NotCompared, match=r"do(es)? not depend on the inputs that the program stores"):
        compare_programs(first, second, (), ())


def test_a_program_without_inputs_is_not_compared() -> None:
    program = exported(1, X)
    program._example_inputs = None
    with pytest.raises(NotCompared, match=r"stores no inputs\. Give sizes by `input_shapes=SIZES`"):
        compare_programs(program, program, (), ())


class Tables(nn.Module):
    """Indexes two tables, one through views of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Embedding(500, 4), nn.Embedding(3, 4)

    def forward(self, mask: Tensor, ids: Tensor, types: Tensor) -> Tensor:
        out: Tensor = (self.large(ids.unsqueeze(1).reshape(-1)) + self.small(types)) * mask.unsqueeze(-1)
        return out


def test_random_integers_index_all_rows_of_tables() -> None:
    mask, ids, types = torch.ones(300, dtype=torch.int64), torch.zeros(300, dtype=torch.int64), torch.zeros(300).long()
    program = torch.export.export(Tables(), (mask, ids, types))
    assert index_limits(program) == {"ids": 500, "types": 3}
    found, _ = randomized(program, ((mask, ids, types), {}))
    assert torch.equal(found[0], mask)
    assert 450 < int(found[1].max()) < 500
    assert set(found[2].tolist()) == {0, 1, 2}
