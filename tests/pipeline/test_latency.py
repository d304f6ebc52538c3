from collections.abc import Callable

import pytest
import torch
from torch import nn

from lrzip.core.costs import Latency, Multiplications
from lrzip.core.errors import UsageError
from lrzip.formats.live import LiveSource
from lrzip.pipeline.latency import costs_of, keep_slow, layer_latency
from lrzip.pipeline.profile import Profile, profile
from lrzip.pipeline.request import Request
from lrzip.pipeline.session import Session
from lrzip.ranks.fixed import FixedRank


class Half(nn.Module):
    """Two layers of different sizes, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large, self.unused = nn.Linear(20, 30), nn.Linear(30, 40), nn.Linear(30, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.large(self.small(x))
        return out


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    """Return a session in which the time of a module is the width of its output."""

    def timed(dense: Callable[[], torch.Tensor], factorized: Callable[[], torch.Tensor]) -> Latency:
        return Latency(*(float(call().shape[-1]) for call in (dense, factorized)))

    monkeypatch.setattr("lrzip.pipeline.latency.time_alternately", timed)
    return Session(LiveSource(Half()), Request(FixedRank(3)))


def test_costs_are_those_of_the_layers_that_run(session: Session) -> None:
    plan = session.plan()
    costs = costs_of(profile(Half(), ["5,20"]), plan.factorize, latency=True)
    assert costs.layers["large"].macs_before == 5 * 30 * 40
    assert costs.layers["large"].macs_after == 5 * 3 * 70
    assert costs.layers["unused"].macs_before == 0
    assert costs.layers["unused"].latency is None
    assert costs.layers["small"].latency == Latency(30.0, 30.0)
    assert costs.macs_before
    assert costs.macs_after
    assert costs.macs_before - costs.macs_after == 5 * (600 - 150) + 5 * (1200 - 210)
    assert costs.latency == Latency(40.0, 40.0)


def test_only_layers_that_reach_the_speedup_are_factorized(session: Session) -> None:
    found = profile(Half(), ["5,20"])
    kept = keep_slow(found, session.plan(), 1.0)
    assert [decision.group.name for decision in kept.factorize] == ["small", "large"]  # as fast is fast enough
    assert {keep.name: keep.reason for keep in kept.keep}["unused"].startswith("it does not run on these inputs")
    slow = keep_slow(found, session.plan(), 1.01)
    assert not slow.factorize
    assert {keep.name: keep.reason for keep in slow.keep}["large"] == (
        "its factors run 1.00 times as fast; `--min-speedup` asks for 1.01"
    )


def test_a_layer_is_timed_on_inputs_of_the_observed_shape(session: Session) -> None:
    found, (small, _, unused) = profile(Half(), ["5,20"]), session.plan().factorize
    assert layer_latency(found, small) == Latency(30.0, 30.0)
    assert layer_latency(found, unused) is None


def test_only_networks_have_layers_that_can_be_timed(session: Session) -> None:
    with pytest.raises(UsageError, match="`min_speedup` times layers of a network"):
        keep_slow(Profile(Multiplications({}, 0)), session.plan(), 1.0)
    with pytest.raises(UsageError, match="`min_speedup` must be above 0, got 0"):
        keep_slow(profile(Half(), ["5,20"]), session.plan(), 0.0)
