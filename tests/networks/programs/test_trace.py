"""Networks are traced with dynamic dimensions where they allow it."""

import pytest
import torch
from torch import Tensor, nn

from lrzip.core.errors import LrzipError
from lrzip.networks.inputs import InputShape
from lrzip.networks.programs.trace import trace, trace_program


class Fixed(nn.Module):
    """A network that depends on its batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x) + (1 if x.shape[0] == 2 else 0)
        return out


class Branches(Fixed):
    """A network that torch.export does not support."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x) if float(x.sum()) > 0 else x
        return out


def shapes(*texts: str) -> list[InputShape]:
    return [InputShape.parse(text) for text in texts]


def test_named_dimensions_are_dynamic() -> None:
    traced = trace(nn.Linear(8, 4).eval(), shapes("1,length=5,8"))
    assert traced.dynamic == [{0: "batch", 1: "length"}]
    assert traced.fixed == []
    assert [tuple(x.shape) for (x,) in traced.runs] == [(2, 5, 8), (1, 5, 8), (3, 5, 8)]
    x = torch.ones(4, 9, 8)
    torch.testing.assert_close(traced.program.module()(x), traced.network(x))


def test_a_dimension_that_the_network_makes_a_constant_is_named() -> None:
    traced = trace(Fixed().eval(), shapes("1,8"))
    assert traced.fixed == ["batch"]
    assert traced.dynamic == [{}]
    assert [tuple(x.shape) for (x,) in traced.runs] == [(1, 8)]


def test_a_stored_program_brings_its_inputs_and_names_its_batch() -> None:
    batch = torch.export.Dim("rows")
    x = torch.ones(3, 8)
    traced = trace_program(torch.export.export(nn.Linear(8, 4), (x,), dynamic_shapes=[{0: batch}]))
    assert traced.dynamic == [{0: "batch"}]
    ((stored,),) = traced.runs
    assert stored.equal(x)


@pytest.mark.parametrize(
    ("model", "texts", "message"),
    [
        (Fixed(), ["1,9"], "The network does not take `input_shapes=1,9:float32`: RuntimeError"),
        (Fixed(), ["1,8", "1,8"], "The network does not take"),
        (Branches(), ["1,8"], "torch.export cannot follow the network"),
    ],
)
def test_networks_that_cannot_be_traced_are_refused_in_one_line(
    model: nn.Module, texts: list[str], message: str
) -> None:
    with pytest.raises(LrzipError) as caught:
        trace(model, shapes(*texts))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
