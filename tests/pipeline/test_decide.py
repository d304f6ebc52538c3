from pathlib import Path

import pytest
import torch
from torch import nn

from lrzip.core.errors import LrzipError
from lrzip.core.layers import Layer
from lrzip.core.options import Factoring, Selection
from lrzip.core.plan import Plan
from lrzip.formats.live import LiveSource
from lrzip.pipeline.request import Request, request_of
from lrzip.pipeline.session import Session
from lrzip.ranks import parse_rule


def plan_of(rule: str, *shapes: tuple[int, int], layers: dict[str, str] | None = None, **factoring: object) -> Plan:
    """Return the plan for linear layers `0`, `1`, … with given shapes."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(inputs, outputs, bias=False) for outputs, inputs in shapes))
    rules = {pattern: parse_rule(text) for pattern, text in (layers or {}).items()}
    options = Factoring(**factoring)  # type: ignore[arg-type]
    return Session(LiveSource(model), Request(parse_rule(rule), factoring=options, rules=rules)).plan()


def ranks_of(plan: Plan) -> dict[str, int]:
    return {decision.group.name: decision.ranks[0] for decision in plan.factorize}


def test_kept_layers_say_why_and_where_they_break_even() -> None:
    saving_nothing = plan_of("rank:30", (40, 30))
    assert [keep.reason for keep in saving_nothing.keep] == ["rank 30 saves nothing; break-even is 17"]
    unreachable = plan_of("ratio:50", (40, 30))
    assert [keep.reason for keep in unreachable.keep] == ["no rank meets ratio 50; break-even is 17"]
    budgeted = plan_of("budget:params=100%", (40, 30))
    assert [keep.reason for keep in budgeted.keep] == ["kept by budget params=100%"]


def test_ranks_are_rounded_up_to_a_multiple_that_saves() -> None:
    assert ranks_of(plan_of("rank:9", (40, 30), round_to=8)) == {"0": 16}
    assert ranks_of(plan_of("rank:16", (40, 30), round_to=8)) == {"0": 16}
    assert ranks_of(plan_of("rank:17", (40, 30), round_to=8)) == {"0": 17}  # 24 saves nothing


def test_ranks_that_save_nothing_are_taken_if_forced_and_never_above_the_largest() -> None:
    assert ranks_of(plan_of("rank:29", (40, 30), force_factorize=True, round_to=8)) == {"0": 30}


def test_a_budget_decides_after_the_rules_of_some_layers() -> None:
    """The rule takes 2 · 70 of 1200 elements of a layer, so that the budget of half of all keeps the other dense."""
    plan = plan_of("budget:params=60%", (40, 30), (30, 40), layers={"0": "rank:2"})
    assert ranks_of(plan) == {"0": 2}
    assert plan.budget
    assert plan.budget.used == 2 * 70 + 1200
    alone = plan_of("budget:params=60%", (40, 30), (30, 40))
    assert len(ranks_of(alone)) == 2


def test_decisions_are_in_the_order_of_the_source() -> None:
    plan = plan_of("rank:3", (40, 30), (30, 40), (40, 40), layers={"0": "rank:4", "2": "energy:0.3"})
    assert [decision.group.name for decision in plan.factorize] == sorted(d.group.name for d in plan.factorize)


def test_auto_chooses_a_decomposition_for_each_layer() -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(16, 24, 3)
    network = nn.Sequential(first, nn.Conv2d(24, 16, 1), nn.Flatten(), nn.Linear(16, 30))
    # Input channels of the first convolution are copies of two, so that Tucker-2 needs few of them.
    with torch.no_grad():
        first.weight[:, 2:] = first.weight[:, :2].repeat(1, 7, 1, 1)
    factoring = Factoring(decomposition="auto")
    for target in ("energy:0.9", "ratio:2", "budget:params=60%"):
        plan = Session(LiveSource(network), request_of(parse_rule(target), Selection(), factoring)).plan()
        used = {item.layer.name: item.decomposition for item in plan.factorize}
        assert used["0"] in {"tucker", "spatial-vertical", "spatial-horizontal", "cp"}
        assert {used.get("1", "svd"), used.get("3", "svd")} == {"svd"}  # no kernel: the others do not take them


def test_a_decomposition_that_takes_no_layer_is_an_error() -> None:
    session = Session(
        LiveSource(nn.Sequential(nn.Linear(30, 40))),
        request_of(parse_rule("rank:2"), Selection(), Factoring(decomposition="tucker")),
    )
    with pytest.raises(LrzipError, match="No selected layer can be replaced by `decomposition=tucker`"):
        session.plan()


def test_layers_have_decompositions_of_their_own() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(16, 24, 3), nn.Conv2d(24, 20, 3), nn.Conv2d(20, 24, 3))
    rules = {"0": "tucker:rank:3", "2": "tucker"}
    request = request_of(parse_rule("rank:2"), Selection(), Factoring(), rules)
    plan = Session(LiveSource(network), request).plan()
    assert [(item.decomposition, item.ranks) for item in plan.factorize] == [
        ("tucker", (3, 3)),
        ("svd", (2,)),
        ("tucker", (2, 2)),
    ]


def test_given_ranks_need_no_rule() -> None:
    session = Session(LiveSource(nn.Sequential(nn.Linear(30, 40))), Request(Path("no such plan.json")))
    plan = session.plan_with({"0": (30,)}, reason="kept")
    assert ranks_of(plan) == {"0": 30}
    assert [item.name for item in session.layers if isinstance(item, Layer)] == ["0"]
