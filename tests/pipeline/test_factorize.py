import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lrzip.core.errors import LrzipError
from lrzip.core.options import Factoring
from lrzip.formats.live import LiveSource
from lrzip.linalg.svd import Solver
from lrzip.pipeline.factorize import Factorizer
from lrzip.pipeline.request import Request
from lrzip.pipeline.session import Session
from lrzip.ranks.fixed import FixedRank
from tests.support.decisions import WITH_BIAS, low_rank


def session_of(weights: dict[str, Tensor], **options: object) -> Session:
    """Return a session over bias-free linear layers with given weights."""
    model = nn.ModuleDict()
    for name, weight in weights.items():
        outputs, inputs = weight.shape
        layer = nn.Linear(inputs, outputs, bias=False)
        layer.weight = nn.Parameter(weight)
        model[name] = layer
    return Session(LiveSource(model), Request(FixedRank(2), factoring=Factoring(**options)))  # type: ignore[arg-type]


def test_equal_weights_of_two_layers_get_different_sketches() -> None:
    """A sketch depends on the name of its layer, so that errors of layers are independent."""
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    options = {"svd": "randomized", "oversample": 0, "power_iterations": 0, "tolerance": float("inf")}
    session = session_of({"a": weight, "b": weight.clone()}, **options)
    first, second = (factors for _, factors, _ in session.factors(session.plan()))
    assert not torch.allclose(first.members[0].weights[0], second.members[0].weights[0])


def test_the_same_seed_gives_the_same_factors_whatever_the_order_of_layers() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(40, 30, generator=generator) for name in ("a", "b")}
    found = []
    for order in (weights, dict(reversed(weights.items()))):
        session = session_of(order, svd="randomized", tolerance=float("inf"))
        found.append({decision.layer.name: factors for decision, factors, _ in session.factors(session.plan())})
    for name in weights:
        assert torch.equal(found[0][name].members[0].weights[0], found[1][name].members[0].weights[0])


def test_factors_that_overflow_in_their_dtype_are_an_error() -> None:
    session = session_of({"a": 1e12 * torch.rand(40, 30)}, dtype="float16")
    with pytest.raises(LrzipError, match="`a` of `the network` overflows in float16"):
        list(session.factors(session.plan()))


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        ("float16", "`dtype=bfloat16` or `skip=fc1`"),
        ("bfloat16", "`dtype=float32` or `skip=fc1`"),
        ("float32", "`skip=fc1`"),
        ("float64", "`skip=fc1`"),
    ],
)
def test_the_remedy_of_an_overflow_has_a_larger_range(dtype: str, remedy: str) -> None:
    decision = replace(low_rank(WITH_BIAS, 4), dtype=dtype)
    factorizer = Factorizer(LiveSource(nn.Linear(2, 2)), Solver(), None, "cpu", 0)
    with pytest.raises(LrzipError, match=re.escape(f"`fc1` of `the network` overflows in {dtype}. Use {remedy}.")):
        factorizer._check_error(float("nan"), decision)


def test_weights_that_become_infinite_after_planning_are_an_error() -> None:
    weight = torch.rand(40, 30)
    session = session_of({"a": weight})
    plan = session.plan()
    with torch.no_grad():
        weight[0, 0] = torch.inf
    with pytest.raises(LrzipError, match="`a` of `the network` contains NaN or Inf"):
        list(session.factors(plan))
