from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import lrzip
from lrzip.core.errors import UsageError
from lrzip.core.layers import Layer
from lrzip.core.options import Factoring, Machine, Selection
from lrzip.formats.live import LiveSource
from lrzip.pipeline.request import Request
from lrzip.pipeline.session import Session, open_session
from lrzip.pipeline.setup import Setup
from lrzip.ranks import parse_rule
from lrzip.ranks.budget import parse_budgets
from lrzip.ranks.fixed import FixedRank
from tests.support.networks import Net, seeded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(seeded(Net).state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt"


def counting(calls: Counter[str]) -> Machine:
    """Return a machine that counts the layers of each phase."""

    def progress(phase: str, layer: Layer, index: int, count: int) -> None:
        del layer, index, count
        calls[phase] += 1

    return Machine(progress=progress)


def test_layers_are_read_once_for_several_plans(path: Path) -> None:
    calls: Counter[str] = Counter()
    rules = parse_budgets("params=40%,60%,80%")
    with open_session(path, Request(rules[0]), Setup(machine=counting(calls))) as session:
        plans = [session.plan(rule) for rule in rules]
    assert calls == {"reading": 4}
    limits = [plan.budget.limit for plan in plans if plan.budget]
    assert limits == sorted(set(limits))
    assert len(limits) == 3


def test_a_network_has_the_tensors_that_are_written(path: Path, tmp_path: Path) -> None:
    model = seeded(Net)
    request = Request(FixedRank(3), Selection(skip=["conv1"]))
    live = Session(LiveSource(model), request)
    network = live.network(live.plan())
    with open_session(path, request, Setup(), beside=tmp_path / "small.pt") as session:
        report = session.write(session.plan(), tmp_path / "small.pt", {})
    state = torch.load(tmp_path / "small.pt", weights_only=True)
    assert network.state_dict().keys() == state.keys()
    # Factors of the file come from the subspaces of pass 1, those of the network from a solver of their own.
    for name, tensor in lrzip.factorize(model, rank=3, skip=["conv1"]).state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])
    assert report.output == tmp_path / "small.pt"
    assert [result.decision.layer.name for result in report.results] == ["conv2", "fc1", "fc2"]


def test_a_network_is_changed_in_place_only_if_it_is_given(path: Path) -> None:
    model = seeded(Net)
    session = Session(LiveSource(model), Request(FixedRank(3)))
    copied = session.network(session.plan())
    assert isinstance(model.fc1, nn.Linear)
    assert isinstance(copied.fc1, nn.Sequential)
    assert session.network(session.plan(), model) is model
    assert isinstance(model.fc1, nn.Sequential)
    with open_session(path, Request(FixedRank(3)), Setup()) as weights, pytest.raises(UsageError, match="only weights"):
        weights.network(weights.plan())


def test_given_ranks_are_planned_without_reading_a_weight(path: Path) -> None:
    calls: Counter[str] = Counter()
    request = Request(FixedRank(1), Selection(skip=["conv1"]), Factoring(dtype="float16"))
    with open_session(path, request, Setup(machine=counting(calls))) as session:
        plan = session.plan_with({"fc1": (64,), "conv2": (2,)}, reason="kept by hand")
    assert not calls
    assert {d.layer.name: (d.ranks, d.dtype) for d in plan.factorize} == {
        "conv2": ((2,), "float16"),
        "fc1": ((64,), "float16"),  # although it saves nothing
    }
    reasons = {keep.name: keep.reason for keep in plan.keep}
    assert reasons["fc2"] == "kept by hand"
    assert reasons["conv1"] == "matched `--skip conv1`"


def test_a_report_without_an_output_predicts_the_size(path: Path) -> None:
    with open_session(path, Request(parse_rule("ratio:4")), Setup()) as session:
        plan = session.plan()
        report = session.report(plan, dropped={"optimizer": "stale"})
        assert report.nbytes_after == path.stat().st_size - plan.nbytes_saved
    assert report.output is None
    assert report.results == ()
    assert report.dropped == (("optimizer", "stale"),)


def test_a_live_network_has_no_file_to_report_on() -> None:
    session = Session(LiveSource(seeded(Net)), Request(FixedRank(3)))
    with pytest.raises(TypeError, match="no file to write or report on"):
        session.report(session.plan())


def test_a_calibration_runs_once_and_changes_the_objective(path: Path) -> None:
    x = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    rules = parse_budgets("params=40%,60%")
    with open_session(path, Request(rules[0]), Setup(model=Net(), calibrate=x)) as session:
        plans = [session.plan(rule) for rule in rules]
        reports = [session.report(plan) for plan in plans]
    assert [plan.budget.objective for plan in plans if plan.budget] == ["fisher", "fisher"]
    assert [report.calibrated.count for report in reports if report.calibrated] == [16, 16]
