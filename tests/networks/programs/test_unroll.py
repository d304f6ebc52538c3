"""Branches and loops of programs count as they are executed."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.fx import GraphModule

from lrzip.networks.programs.run import measure
from lrzip.networks.programs.trace import export_network
from lrzip.networks.programs.unroll import Unrolled


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        start = (torch.tensor(0), x)
        done = while_loop(lambda i, _: i < 4, lambda i, x: (i + 1, self.layer(x)), start)  # type: ignore[no-untyped-call]
        out: Tensor = done[1]
        return out


class Branch(Loop):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.cond(x.sum() > 0, lambda x: self.layer(x), lambda x: x @ x.mT @ x, (x,))
        return out


class Scan(Loop):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = scan(lambda carry, x: (self.layer(carry), carry + x), torch.zeros(1, 3), x[:, None])[1]
        return out


class Map(Loop):
    def forward(self, x: Tensor) -> Tensor:
        def row_of(row: Any) -> Any:
            return self.layer(row[None])[0]

        out: Tensor = map_(row_of, x)  # type: ignore[arg-type]
        return out


CASES = [
    (Loop, 1.0, 4 * 5 * 9),
    (Branch, 1.0, 5 * 9),
    (Branch, -1.0, 2 * 5 * 5 * 3),
    (Scan, 1.0, 5 * 9),
    (Map, 1.0, 5 * 9),
]


@pytest.mark.parametrize(("network", "sign", "expected"), CASES)
def test_programs_multiply_as_often_as_they_run(network: type[nn.Module], sign: float, expected: int) -> None:
    x = sign * torch.ones(5, 3)
    program = export_network(network().eval(), (x,), {})
    found = measure(program, [], [])
    assert found.macs is not None
    assert (found.macs * found.samples, found.not_counted) == (expected, None)


@pytest.mark.parametrize("network", [Loop, Branch, Scan, Map])
def test_unrolled_programs_compute_what_the_network_computes(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = network().eval(), torch.rand(5, 3)
    module = export_network(model, (x,), {}).module()
    assert isinstance(module, GraphModule)
    with torch.no_grad():
        out = Unrolled(module, lambda _, compute, __: compute()).run(x)
        reference = module_output(model, x)
    torch.testing.assert_close(out, reference)


def module_output(model: nn.Module, x: Tensor) -> Tensor:
    """Return the output by a loop in Python."""
    layer = model.layer
    assert isinstance(layer, nn.Linear)
    if isinstance(model, Branch | Map):
        return layer.forward(x)
    if isinstance(model, Scan):
        rows, carry = [], torch.zeros(1, 3)
        for row in x[:, None]:
            rows.append(carry + row)
            carry = layer(carry)
        return torch.stack(rows)
    for _ in range(4):
        x = layer(x)
    return x
