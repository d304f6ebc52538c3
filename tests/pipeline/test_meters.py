from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lrzip
from lrzip.core.costs import Latency
from lrzip.core.errors import UsageError
from tests.support.networks import Net, seeded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(seeded(Net).state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_a_budget_of_bytes_counts_the_dtype_of_factors(path: Path, tmp_path: Path) -> None:
    whole = sum(tensor.nbytes for tensor in torch.load(path, weights_only=True).values())
    for dtype in ("keep", "float16"):
        report = lrzip.compress(path, tmp_path / f"{dtype}.pt", budget="nbytes=50%", dtype=dtype)
        written = sum(tensor.nbytes for tensor in torch.load(tmp_path / f"{dtype}.pt", weights_only=True).values())
        spent = report.plan.budget
        assert spent
        assert (spent.dense, spent.used) == (whole, written)
        assert written <= whole // 2
    assert lrzip.compress(path, budget="nbytes=20kB", dtype="float16", dry_run=True).plan.factorize


def test_a_budget_of_multiply_accumulates_counts_as_the_report_does(path: Path) -> None:
    report = lrzip.compress(path, budget="macs=50%", model=seeded(Net), input_shapes=["1,3,16,16"], dry_run=True)
    spent = report.plan.budget
    assert spent
    assert report.costs
    assert (spent.dense, spent.used) == (report.costs.macs_before, report.costs.macs_after)
    assert spent.used <= spent.dense // 2
    with pytest.raises(UsageError, match=r"Give `model=PKG\.MOD:NET` and `input_shapes="):
        lrzip.compress(path, budget="macs=50%", dry_run=True)


def test_layers_that_are_not_executed_cost_nothing(tmp_path: Path) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(40, 40), nn.Linear(40, 40)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.used(x)
            return out

    torch.save(Half().state_dict(), tmp_path / "net.pt")
    report = lrzip.compress(tmp_path / "net.pt", budget="macs=50%", model=Half(), input_shapes=["1,40"], dry_run=True)
    assert [decision.layer.name for decision in report.plan.factorize] == ["used"]


def test_a_budget_of_time_is_met_by_the_measured_times(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace times by one microsecond per weight, and one more for each layer."""

    def timed(_: Any, decision: Any) -> Latency:
        return Latency((decision.parameters_before + 1) * 1e-6, (decision.parameters_after + 1) * 1e-6)

    seconds = sum(tensor.numel() for tensor in Net().parameters()) * 1e-6
    monkeypatch.setattr("lrzip.pipeline.meters.layer_latency", timed)
    monkeypatch.setattr("lrzip.pipeline.meters.network_latency", lambda *_: Latency(seconds, seconds))
    options: Any = {"model": Net(), "input_shapes": ["2,3,16,16"], "dry_run": True}
    by_time = lrzip.compress(path, budget="latency=50%", **options)
    by_size = lrzip.compress(path, budget="params=50%", **options)
    spent = by_time.plan.budget
    assert spent
    assert spent.unit == "latency"
    assert spent.dense == round(seconds * 1e9)
    assert spent.used <= spent.limit
    sizes = [report.parameters_after for report in (by_time, by_size)]
    # Interpolation is exact for counts that are linear in the rank; a microsecond is a weight.
    assert abs(sizes[0] - sizes[1]) <= 0.01 * by_size.parameters_before


def test_a_budget_of_time_needs_a_network(path: Path) -> None:
    with pytest.raises(UsageError, match="`model=PKG"):
        lrzip.compress(path, budget="latency=50%", dry_run=True)
    with pytest.raises(UsageError, match="A budget of `latency` is for"):
        lrzip.factorize(Net(), budget="latency=50%")
