"""A network costs the same in whatever form it comes: live, in a module file, as a program, or as an ONNX model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.core.costs import Costs
from lrzip.core.errors import UntrustedFile, UsageError
from lrzip.networks.programs.trace import export_network

SHAPE = "1,7,10"
T, X, H = 7, 10, 16


class Mixed(nn.Module):
    """Layers whose products are hidden in fused operators or in functions."""

    def __init__(self, recurrent: type[nn.RNNBase]) -> None:
        super().__init__()
        self.first = nn.Linear(X, H)
        self.recurrent = recurrent(H, H, batch_first=True)  # type: ignore[arg-type,call-arg]
        self.attention = nn.MultiheadAttention(H, 2, batch_first=True)
        self.free = nn.Parameter(torch.ones(H, H))

    def forward(self, x: Tensor) -> Tensor:
        h = self.recurrent(self.first(x))[0]
        h = torch.einsum("bti,io->bto", h, self.free)
        out: Tensor = self.attention(h, h, h, need_weights=False)[0]
        return out


GATES: dict[type[nn.RNNBase], int] = {nn.GRU: 3, nn.LSTM: 4, nn.RNN: 1}


def costs(path: Path, **options: object) -> Costs:
    report = lrzip.compress(path, rank=2, only=["first"], dry_run=True, **options)  # type: ignore[arg-type]
    assert report.costs
    assert report.costs.not_counted is None
    return report.costs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recurrent", GATES)
def test_all_forms_of_a_network_cost_the_same(recurrent: type[nn.RNNBase], tmp_path: Path) -> None:
    model = Mixed(recurrent).eval()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    torch.save(model, tmp_path / "module.pt")
    torch.export.save(export_network(model, (torch.ones(3, T, X),), {}), tmp_path / "a.pt2")
    lrzip.export(tmp_path / "a.pt", "onnx", tmp_path / "a.onnx", model=model, input_shapes=[SHAPE])
    found = {
        "live": costs(tmp_path / "a.pt", model=model, input_shapes=[SHAPE]),
        "module": costs(tmp_path / "module.pt", trust=True, input_shapes=[SHAPE]),
        "program": costs(tmp_path / "a.pt2", trust=True),
        "onnx": costs(tmp_path / "a.onnx", input_shapes=[SHAPE]),
    }
    first, attention = T * X * H, 4 * T * H * H + 2 * T * T * H
    whole = first + GATES[recurrent] * T * 2 * H * H + T * H * H + attention
    after = whole - first + T * 2 * (X + H)
    assert {name: (each.macs_before, each.macs_after) for name, each in found.items()} == dict.fromkeys(
        found, (whole, after)
    )
    assert {name: each.samples for name, each in found.items()} == {"live": 1, "module": 1, "program": 3, "onnx": 1}


def test_requests_for_costs_name_what_helps(tmp_path: Path) -> None:
    module = tmp_path / "module.pt"
    torch.save(nn.Sequential(nn.Linear(8, 8)), module)
    with pytest.raises(UntrustedFile, match="Pass `trust=True`"):
        lrzip.analyze(module, input_shapes=["1,8"])
    with pytest.raises(UsageError, match=r"depend on the sizes of its inputs. Give `input_shapes=SIZES`\."):
        lrzip.analyze(module, trust=True, latency=True)
    program = tmp_path / "a.pt2"
    exported = export_network(nn.Sequential(nn.Linear(8, 8)), (torch.ones(2, 8),), {})
    exported.example_inputs = None
    torch.export.save(exported, program)
    report = lrzip.compress(program, rank=2, trust=True, dry_run=True)
    assert report.costs
    assert report.costs.macs_before is None
    assert report.costs.not_counted == (
        "The program stores no inputs for `input`. Give `input_shapes=SIZES` for each, in this order"
    )
    given = lrzip.compress(program, rank=2, trust=True, dry_run=True, input_shapes=["2,8"])
    assert given.costs
    assert given.costs.macs_before == 2 * 64
